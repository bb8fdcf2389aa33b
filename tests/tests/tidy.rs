//! The invariants of ARCHITECTURE.md that a machine can check, so that nobody has to remember them.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

/// Which crates of the workspace each may name: arrows point one way.
const MAY_DEPEND_ON: [(&str, &[&str]); 13] = [
    (
        "cli",
        &["rvm-engine", "rvm-images", "rvm-isolation", "rvm-protocol"],
    ),
    (
        "engine",
        &[
            "rvm-images",
            "rvm-isolation",
            "rvm-network",
            "rvm-probe",
            "rvm-protocol",
            "rvm-vmm",
        ],
    ),
    ("agent", &["rvm-isolation", "rvm-protocol"]),
    ("vmm", &[]),
    ("vmm/fs-worker", &["rvm-vmm"]),
    ("images", &["rvm-tar"]),
    ("isolation", &["rvm-netlink", "rvm-tar"]),
    ("netlink", &[]),
    ("network", &["rvm-netlink"]),
    ("probe", &[]),
    ("protocol", &[]),
    ("tar", &[]),
    ("tests", &[]),
];

/// Where `unsafe` may stand. Crates that are not named here forbid it.
const MAY_BE_UNSAFE: [(&str, &[&str]); 3] = [
    ("agent", &["sys.rs"]),
    ("isolation", &["sys.rs"]),
    (
        "vmm",
        &["sys.rs", "sys/owned_slice.rs", "sys/uring.rs", "memory.rs"],
    ),
];

/// Lines of a source file, tests included.
const MOST_LINES: usize = 700;

/// A path in the tree, whose top is above this crate's directory.
fn in_tree(path: impl AsRef<Path>) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

/// Every file of the tree that is not built, and is no input of a fuzz target, which are bytes without form: paths relative
/// to its top, and content.
fn files() -> Result<BTreeMap<PathBuf, Vec<u8>>> {
    let mut files = BTreeMap::new();
    let mut pending = vec![PathBuf::new()];
    while let Some(directory) = pending.pop() {
        for entry in fs::read_dir(in_tree(&directory))? {
            let path = directory.join(entry?.file_name());
            let metadata = in_tree(&path).symlink_metadata()?;
            // In a worktree .git is a file.
            let is_source = ![".git", "target", "fuzz/corpus"]
                .iter()
                .any(|end| path.ends_with(end));
            if metadata.is_dir() && is_source {
                pending.push(path);
            } else if metadata.is_file() && is_source {
                let content = fs::read(in_tree(&path)).with_context(|| path.display().to_string())?;
                files.insert(path, content);
            }
        }
    }
    Ok(files)
}

/// The Rust sources among them, as text.
fn sources() -> Result<BTreeMap<PathBuf, String>> {
    let is_source = |path: &Path| path.extension().is_some_and(|extension| extension == "rs");
    let files = files()?.into_iter().filter(|(path, _)| is_source(path));
    files
        .map(|(path, content)| Ok((path, String::from_utf8(content)?)))
        .collect()
}

/// The crate that a file belongs to: the first part of its path.
fn crate_of(path: &Path) -> String {
    path.iter()
        .next()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned()
}

/// Fails with one line per fault.
fn no_faults(rule: &str, faults: impl IntoIterator<Item = String>) {
    let list = faults.into_iter().fold(String::new(), |mut list, fault| {
        let _ = write!(list, "\n  {fault}");
        list
    });
    assert!(list.is_empty(), "{rule}{list}");
}

#[test]
fn crates_depend_downwards() -> Result<()> {
    let mut faults = Vec::new();
    for (directory, allowed) in MAY_DEPEND_ON {
        let manifest = fs::read_to_string(in_tree(directory).join("Cargo.toml"))?;
        for line in manifest.lines().filter(|line| line.starts_with("rvm-")) {
            let name = line.split(['.', ' ', '=']).next().unwrap_or(line);
            if !allowed.contains(&name) {
                faults.push(format!("{directory} depends on {name}"));
            }
        }
    }
    no_faults("crates depend on crates below them only", faults);
    Ok(())
}

#[test]
fn every_crate_is_known_here() -> Result<()> {
    let manifest = fs::read_to_string(in_tree("Cargo.toml"))?;
    let members = manifest
        .lines()
        .find(|line| line.starts_with("members"))
        .context("no members")?;
    for (directory, _) in MAY_DEPEND_ON {
        assert!(
            members.contains(&format!("\"{directory}\"")),
            "{directory} is no member"
        );
    }
    assert_eq!(
        members.matches('"').count() / 2,
        MAY_DEPEND_ON.len(),
        "MAY_DEPEND_ON lacks a member"
    );
    Ok(())
}

#[test]
fn unsafe_code_has_its_places() -> Result<()> {
    // As a keyword: not in a comment, a lint's name or a text.
    let keywords =
        ["{", "fn ", "impl ", "trait ", "extern "].map(|next| format!("{} {next}", concat!("uns", "afe")));
    let is_unsafe = |line: &str| {
        let code = line.split("//").next().unwrap_or(line);
        keywords.iter().any(|keyword| code.contains(keyword))
    };
    let mut faults = Vec::new();
    for (path, text) in sources()? {
        let places = MAY_BE_UNSAFE
            .iter()
            .find(|(name, _)| *name == crate_of(&path))
            .map(|(_, places)| *places);
        if places.is_some_and(|places| places.iter().any(|place| path.ends_with(place))) {
            continue;
        }
        for (number, line) in text.lines().enumerate().filter(|(_, line)| is_unsafe(line)) {
            faults.push(format!("{}:{}: {}", path.display(), number + 1, line.trim()));
        }
        let is_root = path.ends_with("src/lib.rs") || path.ends_with("src/main.rs");
        if is_root && places.is_none() && !text.contains(concat!("#![forbid(uns", "afe_code)]")) {
            faults.push(format!("{}: does not forbid it", path.display()));
        }
    }
    no_faults(
        "code that the compiler cannot check stands where MAY_BE_UNSAFE says",
        faults,
    );
    Ok(())
}

#[test]
fn every_module_says_what_it_is() -> Result<()> {
    let silent = sources()?
        .into_iter()
        .filter(|(_, text)| !text.starts_with("//!"));
    no_faults(
        "modules open with //!",
        silent.map(|(path, _)| path.display().to_string()),
    );
    Ok(())
}

#[test]
fn files_have_a_length_that_can_be_read() -> Result<()> {
    let long = sources()?.into_iter().filter_map(|(path, text)| {
        let lines = text.lines().count();
        (lines > MOST_LINES).then(|| format!("{}: {lines} lines", path.display()))
    });
    no_faults("files are split before they grow long", long);
    Ok(())
}

#[test]
fn nothing_is_left_to_do_or_allowed_wholesale() -> Result<()> {
    let forbidden = [
        concat!("to", "do!("),
        concat!("unimpl", "emented!("),
        concat!("#[al", "low("),
        concat!("#![al", "low("),
        concat!("#[ign", "ore"),
    ];
    let mut faults = Vec::new();
    for (path, text) in sources()? {
        for (number, line) in text.lines().enumerate() {
            if let Some(found) = forbidden.iter().find(|word| line.contains(**word)) {
                faults.push(format!("{}:{}: {found}", path.display(), number + 1));
            }
        }
    }
    no_faults(
        "lints are met or expected with a reason, tests run, code is whole",
        faults,
    );
    Ok(())
}

/// What is true on one machine only does not belong in the tree.
#[test]
fn no_machine_is_named() -> Result<()> {
    let words = [
        concat!("/wo", "rk/"),
        concat!("/ho", "me/"),
        concat!("/ro", "ot/."),
    ];
    let mut faults = Vec::new();
    for (path, content) in files()? {
        let text = String::from_utf8_lossy(&content);
        for (number, line) in text.lines().enumerate() {
            if let Some(found) = words.iter().find(|word| line.contains(**word)) {
                faults.push(format!("{}:{}: {found}", path.display(), number + 1));
            }
        }
    }
    no_faults("paths of one machine", faults);
    Ok(())
}

#[test]
fn scripts_can_be_run_and_say_what_they_do() -> Result<()> {
    let mut faults = Vec::new();
    for (path, content) in files()? {
        let text = String::from_utf8_lossy(&content);
        if !text.starts_with("#!/") {
            continue;
        }
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if fs::metadata(in_tree(&path))?.permissions().mode() & 0o111 == 0 {
            faults.push(format!("{}: is not executable", path.display()));
        }
        if !text
            .lines()
            .take(3)
            .any(|line| line.starts_with(&format!("# {name}")))
        {
            faults.push(format!("{}: has no line \"# {name}: ...\"", path.display()));
        }
    }
    no_faults("scripts", faults);
    Ok(())
}

#[test]
fn text_is_clean() -> Result<()> {
    let mut faults = Vec::new();
    for (path, content) in files()? {
        let Ok(text) = String::from_utf8(content) else {
            continue;
        };
        let is_ours =
            !path.ends_with("LICENSE") && path.extension().is_none_or(|extension| extension != "patch");
        if !is_ours || text.is_empty() {
            continue;
        }
        if !text.ends_with('\n') {
            faults.push(format!("{}: does not end with a line end", path.display()));
        }
        for (number, line) in text.lines().enumerate() {
            if line.ends_with([' ', '\t', '\r']) {
                faults.push(format!("{}:{}: ends with a blank", path.display(), number + 1));
            }
        }
    }
    no_faults("text", faults);
    Ok(())
}
