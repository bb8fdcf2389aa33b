//! `rvm system prune`: what nothing uses goes, and nothing else.

use anyhow::{Result, ensure};
use rvm_tests::both_modes;
use rvm_tests::images::BUSYBOX;

both_modes! {
    fn what_nothing_uses_is_pruned(rvm) {
        let rvm = &rvm.connected();
        rvm.call(["network", "create", "used"])?.ok();
        rvm.call(["network", "create", "--label", "tier=test", "unused"])?.ok();
        rvm.call(["volume", "create", "named"])?.ok();
        let volume = rvm.call(["volume", "create"])?.ok().text();
        rvm.detach("runs", &["--network", "used", BUSYBOX, "sleep", "1000"])?;
        let keeps = |name: &str, arguments: &[&str]| -> Result<String> {
            Ok(rvm.call([&["create", "--name", name], arguments, &[BUSYBOX, "true"]].concat())?.ok().text())
        };
        let ended = keeps("ended", &["--label", "tier=test"])?;
        rvm.call(["start", "-a", "ended"])?.ok();
        let created = keeps("created", &[])?;

        rvm.call(["system", "prune", "-f", "--volumes", "--filter", "until=1h"])?.failed(1, &["\"until\" filter is not supported with \"--volumes\""]);
        rvm.call(["system", "prune", "-f", "--filter", "name=x"])?.failed(125, &["invalid filter"]);
        // Without an answer nothing goes.
        let asked = rvm.call(["system", "prune", "-a", "--volumes"])?.ok().text();
        for line in [
            "WARNING! This will remove:",
            "  - all stopped containers",
            "  - all networks not used by at least one container",
            "  - all anonymous volumes not used by at least one container",
            "  - all images without at least one container associated to them",
            "Are you sure you want to continue? [y/N]",
        ] {
            ensure!(asked.lines().any(|found| found.starts_with(line)), "{line} in {asked}");
        }
        let nothing = rvm.call(["system", "prune", "-f", "--filter", "until=1h"])?.ok().text();
        assert_eq!(nothing, "Total reclaimed space: 0B");
        let some = rvm.call(["system", "prune", "-f", "--filter", "label=tier=test"])?.ok().text();
        let start = format!("Deleted Containers:\n{ended}\n\nDeleted Networks:\nunused\n\nTotal reclaimed space: ");
        ensure!(some.starts_with(&start), "{some}");
        ensure!(!some.ends_with(": 0B"), "{some}");
        let all = rvm.call(["system", "prune", "-f", "--volumes"])?.ok().text();
        let start = format!("Deleted Containers:\n{created}\n\nDeleted Volumes:\n{volume}\n\nTotal reclaimed space: ");
        ensure!(all.starts_with(&start), "{all}");
        assert_eq!(rvm.call(["ps", "-a", "--format", "{{.Names}}"])?.ok().text(), "runs");
        assert_eq!(rvm.call(["volume", "ls", "-q"])?.ok().text(), "named");
        let networks = rvm.call(["network", "ls", "--filter", "type=custom", "--format", "{{.Name}}"])?;
        assert_eq!(networks.ok().text(), "used");
        rvm.run([BUSYBOX, "true"])?.ok();
        rvm.remove_containers()?;
        rvm.call(["network", "rm", "used"])?.ok();
        rvm.call(["volume", "rm", "named"])?.ok();
    }
}
