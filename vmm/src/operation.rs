//! A running machine under its supervisor's commands.

use std::sync::Arc;
use std::time::Duration;

use crate::bus::lock;
use crate::command::{Command, CommandError};
use crate::devices::virtio::ActivateError;
use crate::event::{Event, StopReason};
use crate::event_loop::Operator;
use crate::machine::{Machine, describe};
use crate::statistics::Statistics;
use crate::status::{MemoryStatus, Status, VcpuStatus};
use crate::sys::RunningVcpu;
use crate::vcpu::ExitCounters;

/// All virtual CPUs are out of the guest within this. What they do outside is short, but for a driver that stops a disk:
/// that waits for the request which is under way.
const PAUSE_LIMIT: Duration = Duration::from_secs(5);

/// What commands work on.
pub(crate) struct Operation<'a> {
    machine: &'a Machine,
    vcpus: &'a [RunningVcpu],
    statistics: Statistics,
    paused: bool,
}

impl<'a> Operation<'a> {
    pub(crate) fn new(machine: &'a Machine, vcpus: &'a [RunningVcpu], statistics: Statistics) -> Self {
        Self {
            machine,
            vcpus,
            statistics,
            paused: false,
        }
    }

    fn carry_out(&mut self, command: Command) -> Event {
        let us = || self.machine.reporter.elapsed_us();
        match command {
            Command::Pause {} => match self.pause() {
                Ok(()) => Event::Paused { us: us() },
                Err(detail) => Event::CommandFailed { detail },
            },
            Command::Resume {} => {
                self.resume();
                Event::Resumed { us: us() }
            }
            Command::Status {} => Event::Status(Box::new(self.status())),
        }
    }

    /// The guest first, so that nobody gives the devices anything more to do.
    fn pause(&mut self) -> Result<(), String> {
        if self.paused {
            return Ok(());
        }
        let parking = &self.machine.surroundings.parking;
        parking.ask();
        for vcpu in self.vcpus {
            vcpu.kick();
        }
        if !parking.wait(PAUSE_LIMIT) {
            parking.release();
            let limit = PAUSE_LIMIT.as_secs();
            return Err(format!("a virtual CPU did not stop within {limit} seconds"));
        }
        for device in &self.machine.devices {
            lock(lock(&device.transport).device()).pause();
        }
        self.paused = true;
        Ok(())
    }

    /// In the reverse order. A device that cannot go on has lost its thread, and ends the machine.
    fn resume(&mut self) {
        if !self.paused {
            return;
        }
        let resumed = self.machine.devices.iter().rev().try_for_each(|device| {
            let device = Arc::clone(lock(&device.transport).device());
            lock(&device).resume()
        });
        if let Err(error) = resumed {
            self.fail(&error);
        }
        self.machine.surroundings.parking.release();
        self.paused = false;
    }

    fn fail(&self, error: &ActivateError) {
        let stop = &self.machine.surroundings.stop;
        stop.stop(StopReason::DeviceFailure, describe(error));
    }

    fn status(&self) -> Status {
        let machine = self.machine;
        let vcpu = |(index, exits): (usize, &ExitCounters)| VcpuStatus {
            exits: exits.by_name(),
            kvm: self.statistics.of_vcpu(index),
        };
        let region = |(guest_address, process_address, bytes)| MemoryStatus {
            guest_address,
            process_address,
            bytes,
        };
        Status {
            paused: self.paused,
            us: machine.reporter.elapsed_us(),
            memory: crate::memory::regions(machine.vm.memory()).map(region).collect(),
            vcpus: machine.surroundings.exits.iter().enumerate().map(vcpu).collect(),
            kvm: self.statistics.of_vm(),
            devices: machine.devices.iter().map(|device| device.status()).collect(),
        }
    }
}

impl Operator for Operation<'_> {
    fn handle(&mut self, command: Result<Command, CommandError>) {
        let answer = match command {
            Ok(command) => self.carry_out(command),
            Err(error) => Event::CommandFailed {
                detail: describe(&error),
            },
        };
        self.machine.reporter.send_reliably(&answer);
    }

    fn is_paused(&self) -> bool {
        self.paused
    }
}
