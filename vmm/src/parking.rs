//! Where the threads of virtual CPUs wait while the machine is paused.
//!
//! The pausing thread first asks for it, then interrupts each virtual CPU, and waits until all are here. A thread comes
//! here only after an interrupted `KVM_RUN`: with that, KVM has completed the access to a device that came before, and
//! the processor's state is whole (Documentation/virt/kvm/api.rst, `KVM_RUN`).

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

use crate::bus::lock;

/// The waiting place of one machine's threads.
#[derive(Debug)]
pub struct Parking {
    /// Changed under the lock; read without it on the way into the guest.
    wanted: AtomicBool,
    threads: Mutex<Threads>,
    changed: Condvar,
}

#[derive(Debug)]
struct Threads {
    /// Those that have not ended.
    alive: usize,
    parked: usize,
}

/// One thread's share in a [`Parking`]; it is given up with the thread's end, so that nobody waits for it.
#[derive(Debug)]
pub(crate) struct Place<'a>(&'a Parking);

impl Parking {
    /// A waiting place for as many threads.
    #[must_use]
    pub fn new(threads: usize) -> Self {
        Self {
            wanted: AtomicBool::new(false),
            threads: Mutex::new(Threads {
                alive: threads,
                parked: 0,
            }),
            changed: Condvar::new(),
        }
    }

    /// Asks all threads to come. Whoever interrupts them does so after this.
    pub(crate) fn ask(&self) {
        self.wanted.store(true, Ordering::SeqCst);
    }

    /// Waits until all threads that have not ended are here; `false` if they are not within `limit`.
    pub(crate) fn wait(&self, limit: Duration) -> bool {
        let threads = lock(&self.threads);
        let (_threads, waited) = self
            .changed
            .wait_timeout_while(threads, limit, |threads| threads.parked < threads.alive)
            .unwrap_or_else(PoisonError::into_inner);
        !waited.timed_out()
    }

    /// Lets all threads go on.
    pub(crate) fn release(&self) {
        let _threads = lock(&self.threads);
        self.wanted.store(false, Ordering::SeqCst);
        self.changed.notify_all();
    }

    /// The calling thread's place; there are as many as [`Parking::new`] was told.
    pub(crate) fn place(&self) -> Place<'_> {
        Place(self)
    }
}

impl Place<'_> {
    /// Waits here if that was asked for, until it is released. Returns whether it was.
    pub(crate) fn park_if_asked(&self) -> bool {
        let Self(parking) = self;
        if !parking.wanted.load(Ordering::SeqCst) {
            return false;
        }
        let mut threads = lock(&parking.threads);
        threads.parked += 1;
        parking.changed.notify_all();
        let mut threads = parking
            .changed
            .wait_while(threads, |_| parking.wanted.load(Ordering::SeqCst))
            .unwrap_or_else(PoisonError::into_inner);
        threads.parked -= 1;
        true
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        lock(&self.0.threads).alive -= 1;
        self.0.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicU32;
    use std::thread;

    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    /// A thread that goes round and parks when asked, until it is told to end.
    fn start(
        parking: &Arc<Parking>,
        end: &Arc<AtomicBool>,
        parked: &Arc<AtomicU32>,
    ) -> thread::JoinHandle<()> {
        let (parking, end, parked) = (parking.clone(), end.clone(), parked.clone());
        thread::spawn(move || {
            let place = parking.place();
            while !end.load(Ordering::SeqCst) {
                if place.park_if_asked() {
                    parked.fetch_add(1, Ordering::SeqCst);
                }
                thread::yield_now();
            }
        })
    }

    #[test]
    fn all_threads_park_and_go_on_again_and_again() {
        let (parking, end) = (Arc::new(Parking::new(3)), Arc::new(AtomicBool::new(false)));
        let parked = Arc::new(AtomicU32::new(0));
        let threads: Vec<_> = (0..3).map(|_| start(&parking, &end, &parked)).collect();
        for _ in 0..100 {
            parking.ask();
            assert!(parking.wait(LONG));
            parking.release();
        }
        end.store(true, Ordering::SeqCst);
        for thread in threads {
            thread.join().unwrap();
        }
        // Released and asked again before it woke up, a thread stays.
        assert!((3..=300).contains(&parked.load(Ordering::SeqCst)));
    }

    #[test]
    fn nobody_waits_for_a_thread_that_has_ended() {
        let (parking, end) = (Arc::new(Parking::new(1)), Arc::new(AtomicBool::new(true)));
        start(&parking, &end, &Arc::default()).join().unwrap();
        parking.ask();
        assert!(parking.wait(LONG));
    }

    #[test]
    fn a_thread_that_does_not_come_is_not_waited_for_without_end() {
        let parking = Parking::new(1);
        parking.ask();
        assert!(!parking.wait(Duration::from_millis(10)));
    }
}
