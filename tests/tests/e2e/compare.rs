//! `rvm compare`: the two modes side by side, with what each row was read from.

use std::process::Stdio;

use anyhow::{Context as _, Result};
use rvm_tests::command::{LIMIT, Running, finish};
use rvm_tests::images::BUSYBOX;
use rvm_tests::rvm::{Isolation, Rvm, in_mode};
use rvm_tests::wait::{let_pass, wait_until};
use serde_json::Value;

fn cell<'a>(rows: &'a [Value], id: &str, column: &str) -> Result<&'a str> {
    let row = rows.iter().find(|row| row["id"] == id).context("no such row")?;
    row[column].as_str().context("no such column")
}

#[test]
fn each_row_says_what_was_seen_in_both() -> Result<()> {
    in_mode(Isolation::Vm, |rvm: &Rvm| {
        let command = [
            "compare",
            "--format",
            "json",
            "-m",
            "64m",
            BUSYBOX,
            "sh",
            "-c",
            "echo hello; exit 3",
        ];
        let output = finish(rvm.command(command)?, 2 * LIMIT)?.ok();
        let document: Value = serde_json::from_str(&output.text())?;
        let rows = document["rows"].as_array().context("no rows")?;
        let check = |id: &str, vm: &str, container: &str| -> Result<()> {
            for (column, part) in [("vm", vm), ("container", container)] {
                let text = cell(rows, id, column)?;
                assert!(text.contains(part), "{id}, {column}: {text:?} without {part:?}");
            }
            Ok(())
        };
        let host = rustix::system::uname().release().to_str()?.to_owned();
        assert_eq!(document["host"], host);
        check("kernel", "its own", &host)?;
        check("kernel", "boot ", "the host's")?;
        check("memory", "MiB", "MiB")?;
        check("processes", "rvm-vmm", ".rvm-probe")?;
        check("namespaces", "guest kernel's", "the host sees the same ones")?;
        check("limits", "host: memory max", "host: memory 67108864")?;
        check("devices", "null", "null")?;
        check("rights", "00000000a80425fb", "00000000a80425fb")?;
        check("root", "overlay", "overlay")?;
        check("writes", "nothing is left", "nothing is left")?;
        check("host-calls", "ioctl", "openat")?;
        check(
            "host-rights",
            "CapEff 0000000000000000",
            "CapEff 00000000a80425fb",
        )?;
        check("exits", "mmio_write", "none")?;
        check(
            "crash",
            "another one answers",
            "refused (EROFS) by default, within reach with",
        )?;
        check("crash", "panic", "not provoked")?;
        check("command", "code 3, 6 bytes", "code 3, 6 bytes")?;
        for row in rows {
            for column in ["id", "claim", "vm", "container", "evidence"] {
                assert!(row[column].as_str().is_some_and(|text| !text.is_empty()), "{row}");
            }
        }
        assert!(rvm.containers()?.is_empty());
        Ok(())
    })
}

#[test]
fn rows_are_explained_in_two_languages() -> Result<()> {
    in_mode(Isolation::Container, |rvm: &Rvm| {
        let page = rvm.call(["compare", "--explain", "crash"])?.ok().text();
        assert!(
            page.starts_with("crash: ") && page.contains("vm.panic_on_oom"),
            "{page}"
        );
        let page = rvm
            .call(["compare", "--lang", "ko", "--explain", "crash"])?
            .ok()
            .text();
        assert!(page.contains("커널"), "{page}");
        rvm.call(["compare", "--explain", "speed"])?
            .failed(1, &["there is no row \"speed\"", "kernel-settings"]);
        rvm.call(["compare"])?.failed(1, &["--explain"]);
        Ok(())
    })
}

/// What an image has in the probe's place would be believed, whatever it says.
#[test]
fn an_image_with_a_probe_of_its_own_is_refused() -> Result<()> {
    in_mode(Isolation::Container, |rvm: &Rvm| {
        let script = "cp /bin/busybox /.rvm-probe";
        finish(
            rvm.run_command(["--name", "liar", BUSYBOX, "sh", "-c", script])?,
            LIMIT,
        )?
        .ok();
        rvm.call(["commit", "liar", "liar:1"])?.ok();
        for verb in ["compare", "bench"] {
            rvm.call([verb, "liar:1"])?
                .failed(1, &["a file of its own at /.rvm-probe"]);
        }
        rvm.call(["rm", "liar"])?.ok();
        rvm.call(["rmi", "liar:1"])?.ok();
        Ok(())
    })
}

/// Its containers end with it, however it ends.
#[test]
fn one_that_is_killed_leaves_nothing() -> Result<()> {
    in_mode(Isolation::Vm, |rvm: &Rvm| {
        let mut command = rvm.command(["compare", BUSYBOX])?;
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let mut running = Running::start(command)?;
        wait_until("one that waits is there", LIMIT, || {
            let listed = rvm
                .call(["ps", "--no-trunc", "--format", "{{.Command}}"])?
                .ok()
                .text();
            Ok(listed.contains("wait"))
        })?;
        let_pass(std::time::Duration::from_millis(crate::crash::moment(3000)));
        rvm_tests::processes::kill(running.pid()?.as_raw_nonzero().get())?;
        wait_until("it is gone", LIMIT, || Ok(!running.is_running()?))?;
        wait_until("so are its containers", LIMIT, || {
            Ok(rvm.containers()?.is_empty())
        })
    })
}
