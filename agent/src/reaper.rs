//! PID 1 inherits every process whose parent is gone, and has to reap it. The status of the workload and of further
//! processes in the container is not touched here: it belongs to whoever waits for them.

use std::collections::BTreeSet;
use std::io;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use rustix::process::{Pid, WaitId, WaitIdOptions, waitid};

use crate::sys::{Children, wait_for_exit};

/// The children that somebody else waits for, and does so until their end.
#[derive(Debug, Default)]
pub(crate) struct Spoken {
    pids: Mutex<BTreeSet<i32>>,
    changed: Condvar,
}

impl Spoken {
    /// Makes a child that is spoken for; nobody takes its status meanwhile.
    pub(crate) fn make<T, E>(
        &self,
        make: impl FnOnce() -> Result<T, E>,
        pid: impl FnOnce(&T) -> i32,
    ) -> Result<T, E> {
        let mut pids = self.lock();
        let made = make()?;
        pids.insert(pid(&made));
        Ok(made)
    }

    /// The child has been reaped.
    pub(crate) fn release(&self, pid: i32) {
        self.lock().remove(&pid);
        self.changed.notify_all();
    }

    /// Waits until a child that has ended is reaped, if it is spoken for; whether it was.
    fn wait_for(&self, pid: Pid) -> bool {
        let pid = pid.as_raw_nonzero().get();
        let mut pids = self.lock();
        let was = pids.contains(&pid);
        while pids.contains(&pid) {
            pids = self.changed.wait(pids).unwrap_or_else(PoisonError::into_inner);
        }
        was
    }

    fn lock(&self) -> MutexGuard<'_, BTreeSet<i32>> {
        self.pids.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Reaps other children until `workload` has ended, and leaves that one to be reaped.
///
/// # Errors
/// When the workload is no child of this process, or was reaped elsewhere.
pub(crate) fn reap_until(workload: Pid, children: Children, spoken: &Spoken) -> io::Result<()> {
    loop {
        let ended = wait_for_exit(children)?;
        if ended == workload {
            return Ok(());
        }
        if spoken.wait_for(ended) {
            continue;
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
    use std::process::{Child, Command, Stdio};

    use super::*;

    /// A process that ends with its input, and the group that it leads.
    fn workload() -> (Child, Pid) {
        let workload = Command::new("cat")
            .stdin(Stdio::piped())
            .process_group(0)
            .spawn()
            .unwrap();
        let group = Pid::from_child(&workload);
        (workload, group)
    }

    #[test]
    fn strays_are_reaped_and_the_workload_is_left() {
        let (mut workload, group) = workload();
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
        let reaper =
            std::thread::spawn(move || reap_until(group, Children::Group(group), &Spoken::default()));
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

    #[test]
    fn what_is_spoken_for_is_left_to_others() {
        let (mut workload, group) = workload();
        let spoken = std::sync::Arc::new(Spoken::default());
        let mut command = Command::new("sh");
        command
            .args(["-c", "exit 7"])
            .process_group(group.as_raw_nonzero().get());
        let mut child = spoken
            .make(
                || command.spawn(),
                |child| Pid::from_child(child).as_raw_nonzero().get(),
            )
            .unwrap();
        let pid = Pid::from_child(&child).as_raw_nonzero().get();
        let stdin = workload.stdin.take();
        let too = std::sync::Arc::clone(&spoken);
        let reaper = std::thread::spawn(move || reap_until(group, Children::Group(group), &too));
        assert_eq!(child.wait().unwrap().code(), Some(7));
        spoken.release(pid);
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
        assert!(reap_until(gone, Children::Group(gone), &Spoken::default()).is_err());
    }
}
