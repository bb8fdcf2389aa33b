//! What the processes of one command take of processors, wherever their parents leave them.

use std::fs;
use std::io;
use std::thread;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitOptions, getpid, kill_process, set_child_subreaper, wait};
use rvm_isolation::children_processor_time;

/// How long processes of a command that has ended may take to end, too.
pub(super) const LINGER: Duration = Duration::from_secs(2);

/// Time between two looks at them.
const TURN: Duration = Duration::from_millis(1);

/// The processes of one command: what loses its parent becomes a child of this process, so that all are waited for, and the kernel
/// counts what they took. Nothing else may be started meanwhile. What is left of them in the end is killed, so that it is not
/// counted as the next command's.
pub(super) struct Family {
    before: Duration,
}

impl Family {
    /// From now on.
    pub(super) fn adopt() -> io::Result<Self> {
        set_child_subreaper(Some(getpid()))?;
        let before = children_processor_time()?;
        Ok(Self { before })
    }

    /// What they took, once all are gone; `None` where one stays.
    pub(super) fn processor_time(self) -> io::Result<Option<Duration>> {
        let deadline = Instant::now() + LINGER;
        loop {
            match wait(WaitOptions::NOHANG) {
                Ok(Some(_)) | Err(Errno::INTR) => {}
                Ok(None) if Instant::now() > deadline => return Ok(None),
                Ok(None) => thread::sleep(TURN),
                Err(Errno::CHILD) => break,
                Err(error) => return Err(error.into()),
            }
        }
        Ok(Some(children_processor_time()?.saturating_sub(self.before)))
    }
}

impl Drop for Family {
    fn drop(&mut self) {
        loop {
            match wait(WaitOptions::NOHANG) {
                Ok(Some(_)) | Err(Errno::INTR) => {}
                Ok(None) if kill_children() => thread::sleep(TURN),
                _ => break,
            }
        }
        // It could be set, so it can be taken back.
        let _ = set_child_subreaper(None);
    }
}

/// Whether there were any that could be killed. None of them has been waited for, so each number is its own.
fn kill_children() -> bool {
    let threads = fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let lists = threads.filter_map(|thread| fs::read_to_string(thread.path().join("children")).ok());
    let lists: Vec<String> = lists.collect();
    let children = lists.iter().flat_map(|list| list.split_whitespace());
    let children = children.filter_map(|child| Pid::from_raw(child.parse().ok()?));
    children
        .filter(|child| kill_process(*child, Signal::KILL).is_ok())
        .count()
        > 0
}
