//! Health checks.

use std::time::Duration;

use anyhow::Result;
use rvm_tests::both_modes;
use rvm_tests::command::LIMIT;
use rvm_tests::images::BUSYBOX;
use rvm_tests::rvm::Rvm;
use rvm_tests::wait::{let_pass, wait_until};

fn field(rvm: &Rvm, container: &str, name: &str) -> Result<String> {
    let format = format!("{{{{{name}}}}}");
    Ok(rvm.call(["inspect", "--format", &format, container])?.ok().text())
}

fn becomes(rvm: &Rvm, container: &str, health: &str) -> Result<()> {
    wait_until(health, LIMIT, || {
        Ok(field(rvm, container, ".State.Health.Status")? == health)
    })
}

both_modes! {
    fn health_follows_what_the_probes_say(rvm) {
        let probe = "test -e /ready || { echo not yet; exit 7; }";
        let flags = ["--health-cmd", probe, "--health-interval", "300ms", "--health-retries", "2"];
        rvm.detach("well", &[&flags[..], &[BUSYBOX, "sleep", "1000"]].concat())?;
        becomes(rvm, "well", "unhealthy")?;
        let log = field(rvm, "well", "json .State.Health.Log")?;
        assert!(log.contains("\"ExitCode\":7") && log.contains("not yet"), "{log}");
        rvm.call(["exec", "well", "touch", "/ready"])?.ok();
        becomes(rvm, "well", "healthy")?;
        assert_eq!(field(rvm, "well", ".State.Health.FailingStreak")?, "0");
        let listed = |filter| -> Result<String> {
            Ok(rvm.call(["ps", "--filter", filter, "--format", "{{.Status}}"])?.ok().text())
        };
        assert!(listed("health=healthy")?.ends_with(" (healthy)"));
        assert_eq!(listed("health=unhealthy")?, "");
        // One that stands still is not looked at.
        rvm.call(["pause", "well"])?.ok();
        // What was found before is on its way.
        let_pass(Duration::from_millis(500));
        let probes = field(rvm, "well", "json .State.Health.Log")?;
        let_pass(Duration::from_secs(1));
        assert_eq!(field(rvm, "well", "json .State.Health.Log")?, probes);
        rvm.call(["unpause", "well"])?.ok();
        wait_until("it is looked at", LIMIT, || Ok(field(rvm, "well", "json .State.Health.Log")? != probes))?;
        assert_eq!(field(rvm, "well", ".State.Health.Status")?, "healthy");
        rvm.call(["stop", "-t", "0", "well"])?.ok();
        assert_eq!(field(rvm, "well", ".State.Health.Status")?, "unhealthy");
        rvm.call(["rm", "well"])?.ok();
        let mut told = rvm.actions("well")?;
        told.retain(|action| action.starts_with("health") || action.contains("/ready"));
        let expected = [
            "health_status: unhealthy",
            "exec_create: touch /ready",
            "exec_start: touch /ready",
            "health_status: healthy",
        ];
        assert_eq!(told, expected, "probes are no news, what comes of them is");
    }

    fn a_probe_that_hangs_has_failed_and_is_gone(rvm) {
        let flags = ["--health-cmd", "sleep 2000", "--health-interval", "300ms", "--health-timeout", "500ms", "--health-retries", "1"];
        rvm.detach("hangs", &[&flags[..], &[BUSYBOX, "sleep", "1000"]].concat())?;
        becomes(rvm, "hangs", "unhealthy")?;
        let log = field(rvm, "hangs", "json .State.Health.Log")?;
        assert!(log.contains("\"ExitCode\":-1") && log.contains("exceeded timeout"), "{log}");
        // One at a time, whatever came of the ones before.
        let count = rvm.call(["exec", "hangs", "sh", "-c", "ps | grep -c '[s]leep 2000'"])?.text();
        assert!(count.parse::<u32>()? <= 2, "the shell and its child at most: {count}");
        rvm.call(["rm", "-f", "hangs"])?.ok();
    }
}
