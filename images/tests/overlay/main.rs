//! The tree that containers see (layers mounted by the kernel, merged by overlayfs) against the tree that umoci unpacks
//! from the same image: entry by entry.
//!
//! Needs root, loop devices, erofs, overlayfs, umoci, GNU tar, setcap. Works in the directory that `RVM_TEST_SCRATCH`
//! names, in the lab's `/scratch`, or in the system's temporary one; it has to keep extended attributes.
#![forbid(unsafe_code)]

mod random;
mod stack;
mod tree;

use std::fs;
use std::path::Path;

use anyhow::Result;
use stack::{Stack, run};

/// Everything that GNU tar can pack from a real directory; see the script for what each line is after.
const ONE: &str = include_str!("one.sh");
const TWO: &str = include_str!("two.sh");
const THREE: &str = include_str!("three.sh");

#[test]
fn an_image_of_many_oddities() -> Result<()> {
    let mut stack = Stack::new()?;
    let work = stack.directory().to_owned();
    for (name, script) in [("one", ONE), ("two", TWO), ("three", THREE)] {
        let layer = work.join(name);
        fs::create_dir(&layer)?;
        run(&layer, "bash", &["-euc", script])?;
        stack.push(&layer.join("layer.tar"))?;
    }
    let differences = stack.compare()?;
    assert!(differences.is_empty(), "{differences}");
    Ok(())
}

#[test]
fn sparse_files_in_every_format() -> Result<()> {
    for options in [
        "--format=gnu",
        "--format=posix --sparse-version=0.0",
        "--format=posix --sparse-version=0.1",
        "--format=posix --sparse-version=1.0",
    ] {
        let mut stack = Stack::new()?;
        let layer = stack.directory().join("layer");
        fs::create_dir(&layer)?;
        let script = format!(
            "mkdir t; truncate -s 3M t/hole; echo end >>t/hole; \
             truncate -s 10M t/many; for i in $(seq 1 60); do \
               printf %1000d $i | dd of=t/many bs=1 seek=$((i * 169847)) conv=notrunc status=none; done; \
             truncate -s 40M t/empty; printf x >t/plain; \
             tar -S {options} --numeric-owner -C t -cf layer.tar ."
        );
        run(&layer, "bash", &["-euc", &script])?;
        stack.push(&layer.join("layer.tar"))?;
        // umoci does not know all of these.
        run(
            &layer,
            "bash",
            &["-euc", "mkdir x; tar --numeric-owner -C x -xf layer.tar"],
        )?;
        let differences = stack.compare_to(&layer.join("x"))?;
        assert!(differences.is_empty(), "{options}\n{differences}");
    }
    Ok(())
}

/// Stacks of layers drawn at random from a few names, so that everything collides with everything.
#[test]
fn random_stacks() -> Result<()> {
    let rounds = std::env::var("RVM_TEST_ROUNDS").map_or(Ok(25), |text| text.parse())?;
    let (mut compared, mut refused) = (0, 0);
    for seed in 1..=rounds {
        let mut stack = Stack::new()?;
        let mut random = random::Random::new(seed);
        let (mut layers, mut files) = (Vec::new(), Vec::new());
        for index in 0..3 {
            let layer = random::layer(&mut random, &mut files)?;
            let path = stack.directory().join(format!("{index}.tar"));
            fs::write(&path, &layer.tar)?;
            layers.push(layer.description);
            stack.push(&path)?;
        }
        // A layer that makes no sense (a link to nothing, a name beneath a file) is refused by both; there are enough
        // others.
        if stack.is_refused()? {
            refused += 1;
            continue;
        }
        let differences = stack.compare()?;
        assert!(
            differences.is_empty(),
            "seed {seed}\n{}\n{differences}",
            layers.join("\n---\n")
        );
        compared += 1;
    }
    println!("{compared} stacks compared, {refused} refused");
    assert!(compared * 3 >= rounds, "only {compared} stacks could be compared");
    Ok(())
}

/// A real distribution, if one is given.
#[test]
fn a_given_archive() -> Result<()> {
    let Some(archive) = std::env::var_os("RVM_TEST_ARCHIVE") else {
        return Ok(());
    };
    let stack = Stack::of_archive(Path::new(&archive))?;
    let differences = stack.compare()?;
    assert!(differences.is_empty(), "{differences}");
    Ok(())
}
