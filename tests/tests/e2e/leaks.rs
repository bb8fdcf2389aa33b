//! Many runs in a row leave nothing behind.

use std::env;

use rvm_tests::both_modes;
use rvm_tests::images::BUSYBOX;

/// Each of these runs is also covered by the harness's own look before and after; many of them show what adds up.
const RUNS: usize = 50;

both_modes! {
    fn fifty_runs_leave_nothing(rvm) {
        let rvm = &rvm.connected();
        let runs = env::var("RVM_TEST_RUNS").ok().and_then(|count| count.parse().ok()).unwrap_or(RUNS);
        let before = rvm.snapshot()?;
        for run in 0..runs {
            assert_eq!(rvm.run([BUSYBOX, "echo", &run.to_string()])?.ok().text(), run.to_string());
        }
        before.nothing_new()?;
    }
}
