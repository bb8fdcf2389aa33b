//! PID 1 inherits every process whose parent is gone, and has to reap it. The workload's own status is not touched
//! here: it belongs to whoever waits for the container.

use std::io;

use rustix::process::{Pid, WaitId, WaitIdOptions, waitid};

use crate::sys::{Children, wait_for_exit};

/// Reaps other children until `workload` has ended, and leaves that one to be reaped.
///
/// # Errors
/// When the workload is no child of this process, or was reaped elsewhere.
pub(crate) fn reap_until(workload: Pid, children: Children) -> io::Result<()> {
    loop {
        let ended = wait_for_exit(children)?;
        if ended == workload {
            return Ok(());
        }
        match waitid(WaitId::Pid(ended), WaitIdOptions::EXITED) {
            // Someone else was waiting for that very child.
            Ok(_) | Err(rustix::io::Errno::CHILD | rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::CommandExt;
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn strays_are_reaped_and_the_workload_is_left() {
        let mut workload = Command::new("cat")
            .stdin(Stdio::piped())
            .process_group(0)
            .spawn()
            .unwrap();
        let group = Pid::from_child(&workload);
        let strays: Vec<_> = (0..10)
            .map(|_| {
                Command::new("true")
                    .process_group(group.as_raw_nonzero().get())
                    .spawn()
                    .unwrap()
            })
            .collect();
        // All strays end by themselves; the workload only after the last of them was reaped.
        let stdin = workload.stdin.take();
        let reaper = std::thread::spawn(move || reap_until(group, Children::Group(group)));
        for stray in &strays {
            let reaped = || waitid_peek(Pid::from_child(stray)).is_err();
            while !reaped() {
                std::thread::yield_now();
            }
        }
        drop(stdin);
        reaper.join().unwrap().unwrap();
        assert_eq!(workload.wait().unwrap().code(), Some(0));
    }

    fn waitid_peek(pid: Pid) -> rustix::io::Result<()> {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        waitid(WaitId::Pid(pid), options).map(drop)
    }

    #[test]
    fn no_child_is_an_error() {
        let gone = Pid::from_raw(i32::MAX).unwrap();
        assert!(reap_until(gone, Children::Group(gone)).is_err());
    }
}
