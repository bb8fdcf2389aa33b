//! Containers as things with names: listed, read back, removed.

use rvm_tests::both_modes;
use rvm_tests::command::LIMIT;
use rvm_tests::images::BUSYBOX;
use rvm_tests::rvm::Isolation;
use rvm_tests::wait::wait_until;

both_modes! {
    fn a_running_container_is_listed(rvm) {
        let running = rvm.start("sleeper", &[BUSYBOX, "sleep", "1000"])?;
        wait_until("it is listed", LIMIT, || Ok(rvm.call(["ps", "-q"])?.text().lines().count() == 1))?;
        let listing = rvm.call(["ps"])?.ok().text();
        for column in ["CONTAINER ID", "IMAGE", "COMMAND", "CREATED", "STATUS", "NAMES"] {
            assert!(listing.contains(column), "no column {column}\n{listing}");
        }
        for field in [BUSYBOX, "sleeper", "Up", rvm.isolation().name(), "sleep 1000"] {
            assert!(listing.contains(field), "no {field}\n{listing}");
        }
        rvm.call(["rm", "sleeper"])?.failed(1, &["running"]);
        rvm.call(["rm", "-f", "sleeper"])?.ok();
        running.finish(LIMIT)?.code(137);
        assert_eq!(rvm.containers()?, [""; 0]);
    }

    fn an_ended_container_stays_until_removed(rvm) {
        rvm.call(["run", "--isolation", rvm.isolation().name(), "--name", "ended", BUSYBOX, "sh", "-c", "exit 7"])?.code(7);
        assert_eq!(rvm.call(["ps", "-q"])?.ok().text(), "");
        let listing = rvm.call(["ps", "-a"])?.ok().text();
        assert!(listing.contains("Exited (7)") && listing.contains("ended"), "{listing}");
        let id = rvm.containers()?.concat();
        assert!(id.len() >= 12, "{id}");
        rvm.call(["rm", &id[..6]])?.ok();
        rvm.call(["rm", "ended"])?.failed(1, &["ended"]);
        assert_eq!(rvm.call(["ps", "-a", "-q"])?.ok().text(), "");
    }

    fn timing_shows_the_phases_in_order(rvm) {
        let output = rvm.run(["--timing", BUSYBOX, "sh", "-c", "echo out; exit 3"])?.code(3);
        assert_eq!(output.text(), "out");
        let before: &[&str] = &["rvm started", "container made", "supervisor started"];
        let machine: &[&str] = match rvm.isolation() {
            Isolation::Vm => &["VMM started", "first KVM_RUN", "guest kernel booted", "agent ready"],
            Isolation::Container => &[],
        };
        let after: &[&str] = &["isolated", "executed", "workload ended", "torn down", "rvm ends"];
        let errors = output.errors();
        // Output comes on a connection of its own, which may be sooner or later than what is said of the workload.
        let first_byte = |line: &&str| line.contains("first byte");
        assert_eq!(errors.lines().filter(first_byte).count(), 1, "{errors}");
        let mut lines = errors.lines().skip(1).filter(|line| !first_byte(line));
        for label in [before, machine, after].concat() {
            let line = lines.next().unwrap_or_default();
            assert!(line.contains(label), "{label} is not next\n{errors}");
        }
        assert_eq!(lines.next(), None, "{errors}");
    }

    fn logs_keep_what_was_said_and_where(rvm) {
        let arguments = ["--name", "talker", BUSYBOX, "sh", "-c", "echo one; echo two >&2; printf three"];
        rvm_tests::command::finish(rvm.run_command(arguments)?, LIMIT)?.ok();
        let logs = rvm.call(["logs", "talker"])?.ok();
        assert_eq!((logs.text().as_str(), logs.errors().as_str()), ("one\nthree", "two\n"));
        rvm.call(["rm", "talker"])?.ok();
        rvm.call(["logs", "talker"])?.failed(1, &["talker"]);
    }

    fn a_name_is_taken_once(rvm) {
        let running = rvm.start("taken", &[BUSYBOX, "sleep", "1000"])?;
        wait_until("it is listed", LIMIT, || Ok(rvm.call(["ps", "-q"])?.text().lines().count() == 1))?;
        rvm.run(["--name", "taken", BUSYBOX, "true"])?.failed(125, &["taken"]);
        rvm.run(["--name", "not a name", BUSYBOX, "true"])?.failed(125, &["not a name"]);
        rvm.call(["rm", "-f", "taken"])?.ok();
        running.finish(LIMIT)?.code(137);
    }

    fn two_at_once_do_not_meet(rvm) {
        let first = rvm.start("first", &[BUSYBOX, "sh", "-c", "echo first >/x; sleep 1; cat /x"])?;
        let second = rvm.start("second", &[BUSYBOX, "sh", "-c", "echo second >/x; sleep 1; cat /x"])?;
        assert_eq!(first.finish(LIMIT)?.ok().text(), "first");
        assert_eq!(second.finish(LIMIT)?.ok().text(), "second");
    }
}
