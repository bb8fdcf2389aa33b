//! The machine below: KVM that is missing or strange, kernels that are wrong, guests that misbehave.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result};
use rvm_tests::assets::Assets;
use rvm_tests::command::{LIMIT, Output, finish};
use rvm_tests::images::BUSYBOX;
use rvm_tests::processes;
use rvm_tests::rvm::{Isolation, Rvm, alone, beside_this_program, in_mode, scratch};
use rvm_tests::wait::wait_until;

/// Runs `true` in a VM with assets in which something is wrong, and leaves nothing.
fn with_assets(label: &str, change: impl FnOnce(&Assets) -> Result<()>) -> Result<Output> {
    let mut output = None;
    in_mode(Isolation::Vm, |rvm: &Rvm| {
        let directory = scratch()?.join("assets").join(label);
        let _ = fs::remove_dir_all(&directory);
        let assets = Assets::like(rvm.assets(), directory)?;
        change(&assets)?;
        output = Some(rvm.with_assets(assets.directory()).run([BUSYBOX, "true"])?);
        Ok(())
    })?;
    output.context("the run returned nothing")
}

fn probe() -> Result<PathBuf> {
    beside_this_program("probe")
}

#[test]
fn a_missing_asset_is_named() -> Result<()> {
    for name in ["vmlinux", "initramfs", "rvm-vmm"] {
        with_assets(&format!("no-{name}"), |assets| assets.remove(name))?.failed(125, &[name]);
    }
    Ok(())
}

#[test]
fn a_kernel_that_is_none_is_refused() -> Result<()> {
    let text = with_assets("text", |assets| assets.replace("vmlinux", b"this is no kernel"))?;
    text.failed(125, &["kernel"]);
    let empty = with_assets("empty", |assets| assets.replace("vmlinux", b""))?;
    empty.failed(125, &["kernel"]);
    let program = with_assets("program", |assets| {
        assets.replace("vmlinux", &fs::read(probe()?)?)
    })?;
    program.failed(125, &[""]);
    let truncated = with_assets("truncated", |assets| {
        let whole = fs::read(assets.directory().join("vmlinux"))?;
        assets.replace("vmlinux", &whole[..whole.len() / 2])
    })?;
    truncated.failed(125, &["kernel"]);
    Ok(())
}

/// The kernel's last words are in the error.
#[test]
fn a_guest_that_panics_is_told_apart() -> Result<()> {
    let output = with_assets("panic", |assets| assets.misbehaving_guest(&probe()?, "exit"))?;
    output.failed(125, &["panic", "Attempted to kill init"]);
    Ok(())
}

#[test]
fn a_guest_without_init_is_told_apart() -> Result<()> {
    let output = with_assets("garbage-initramfs", |assets| {
        assets.replace("initramfs", b"garbage")
    })?;
    output.failed(125, &["panic"]);
    Ok(())
}

#[test]
fn a_guest_that_never_connects_is_given_up() -> Result<()> {
    let output = with_assets("silent", |assets| assets.misbehaving_guest(&probe()?, "sleep"))?;
    output.failed(125, &["ready"]);
    assert!(output.elapsed < Duration::from_secs(90), "{}", output.describe());
    Ok(())
}

/// What a guest that has taken its VMM over would find.
#[test]
fn the_vmm_has_given_up_what_it_does_not_need() -> Result<()> {
    in_mode(Isolation::Vm, |rvm: &Rvm| {
        let running = rvm.start("confined", &[BUSYBOX, "sleep", "1000"])?;
        wait_until("it is listed", LIMIT, || {
            Ok(rvm.call(["ps", "-q"])?.text().lines().count() == 1)
        })?;
        let vmm = processes::all()?
            .into_values()
            .find(|process| process.name == "rvm-vmm")
            .context("no VMM")?;
        let directory = PathBuf::from(format!("/proc/{}", vmm.pid));
        let status = fs::read_to_string(directory.join("status"))?;
        let field = |status: &str, name: &str| {
            let value = status
                .lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            value.map(|value| value.split_whitespace().collect::<Vec<_>>().join(" "))
        };
        for (name, nothing) in [
            ("CapPrm", "0000000000000000"),
            ("NoNewPrivs", "1"),
            ("Groups", ""),
        ] {
            assert_eq!(field(&status, name).as_deref(), Some(nothing), "{name}");
        }
        let user: u32 = field(&status, "Uid")
            .and_then(|ids| ids.split(' ').next()?.parse().ok())
            .context("no user")?;
        assert!((0x7000_0000..0x7800_0000).contains(&user), "user {user}");
        let mut threads = 0;
        for thread in fs::read_dir(directory.join("task"))? {
            let status = fs::read_to_string(thread?.path().join("status"))?;
            assert_eq!(
                field(&status, "Seccomp_filters").as_deref(),
                Some("2"),
                "{status}"
            );
            threads += 1;
        }
        assert!(threads >= 4, "{threads} threads");
        assert_eq!(fs::read_dir(directory.join("root"))?.count(), 0);
        assert_eq!(fs::read_to_string(directory.join("mounts"))?.lines().count(), 1);
        let interfaces = fs::read_to_string(directory.join("net/dev"))?;
        assert!(
            interfaces
                .lines()
                .skip(2)
                .all(|line| line.trim_start().starts_with("lo:"))
        );
        for kind in ["net", "mnt"] {
            let namespace = |process: &str| fs::read_link(format!("/proc/{process}/ns/{kind}"));
            assert_ne!(namespace(&vmm.pid.to_string())?, namespace("self")?);
        }
        rvm.call(["rm", "-f", "confined"])?.ok();
        running.finish(LIMIT)?.code(137);
        Ok(())
    })
}

/// As after a restart of the host, or when somebody has tidied up: the mounts are gone, the files they covered are there.
#[test]
fn the_namespaces_that_machines_share_are_made_anew() -> Result<()> {
    let _alone = alone();
    // What is left behind is a mount, which is meant.
    let rvm = Rvm::with_images(Isolation::Vm)?;
    for name in ["empty-network", "empty-mounts", "empty-mounts"] {
        let pinned = rvm.run_directory().join(name);
        let unmounted = Command::new("umount").arg(&pinned).status()?;
        assert!(unmounted.success(), "{unmounted}");
        rvm.run([BUSYBOX, "true"])?.ok();
    }
    Ok(())
}

/// Runs `rvm run true` in a mount namespace of its own, in which `prepare` has changed /dev.
fn with_devices(rvm: &Rvm, prepare: &str) -> Result<Output> {
    let run = rvm.run_command(["--rm", BUSYBOX, "true"])?;
    let script = format!("set -e; {prepare}; exec \"$@\"");
    let mut command = Command::new("unshare");
    command
        .args(["--mount", "sh", "-c", &script, "sh"])
        .arg(run.get_program())
        .args(run.get_args());
    command.envs(run.get_envs().filter_map(|(name, value)| Some((name, value?))));
    finish(command, LIMIT)
}

/// A /dev in a tmpfs, with what rvm needs of it except /dev/kvm.
const OWN_DEV: &str = "mount -t tmpfs none /mnt && cp -a /dev/null /dev/zero /dev/full /dev/random /dev/urandom \
    /dev/tty /dev/ptmx /dev/loop* /mnt && mount --move /mnt /dev";

#[test]
fn without_kvm_the_error_says_what_to_do() -> Result<()> {
    in_mode(Isolation::Vm, |rvm: &Rvm| {
        let absent = with_devices(rvm, OWN_DEV)?;
        absent.failed(125, &["/dev/kvm"]);
        // Root without the capability to pass over permissions is like anyone else.
        let forbidden = with_devices(
            rvm,
            &format!(
                "cp -a /dev/kvm /run/kvm-copy && {OWN_DEV} && cp -a /run/kvm-copy /dev/kvm && rm /run/kvm-copy && \
             chmod 000 /dev/kvm && set -- setpriv --bounding-set=-dac_override,-dac_read_search \"$@\""
            ),
        )?;
        forbidden.failed(125, &["/dev/kvm", "permission"]);
        let strange = with_devices(rvm, "mount --bind /dev/null /dev/kvm")?;
        strange.failed(125, &["/dev/kvm"]);
        Ok(())
    })
}

/// What a container needs is not what a VM needs.
#[test]
fn container_mode_needs_neither_kvm_nor_assets() -> Result<()> {
    in_mode(Isolation::Container, |rvm: &Rvm| {
        let _ = with_devices(rvm, OWN_DEV)?.ok();
        let nothing = scratch()?.join("no-assets");
        fs::create_dir_all(&nothing)?;
        rvm.with_assets(&nothing).run([BUSYBOX, "true"])?.ok();
        Ok(())
    })
}

#[test]
fn doctor_is_content_here() -> Result<()> {
    in_mode(Isolation::Vm, |rvm: &Rvm| {
        let output = rvm.call(["doctor"])?.ok();
        for subject in ["kvm", "cgroup", "overlay", "erofs", "kernel"] {
            assert!(
                output.text().to_lowercase().contains(subject),
                "no line on {subject}\n{}",
                output.describe()
            );
        }
        Ok(())
    })
}

#[test]
fn doctor_says_what_is_missing() -> Result<()> {
    in_mode(Isolation::Vm, |rvm: &Rvm| {
        let nothing = scratch()?.join("no-assets");
        fs::create_dir_all(&nothing)?;
        let output = rvm.with_assets(&nothing).call(["doctor"])?;
        assert_ne!(output.code, 0, "{}", output.describe());
        assert!(output.text().contains("vmlinux"), "{}", output.describe());
        Ok(())
    })
}
