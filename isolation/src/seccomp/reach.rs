//! Which system calls a process' filters let through to the kernel, read from the filters that the kernel holds.
//!
//! A filter may look at a call's arguments, which nobody knows here: a call counts as allowed if there are arguments, as far
//! as the filter tells, with which each filter lets it through.

use std::collections::{BTreeSet, HashSet};
use std::io;

use libc::sock_filter;
use syscalls::x86_64::Sysno;

use super::numbers::Interface;
use crate::sys::StoppedThread;

/// States of one filter that are looked at for one call. A filter of a hostile process could have so many that nobody would wait for
/// them; one with more may allow the call.
const MOST_STATES: usize = 1 << 16;

/// `BPF_MEMWORDS` of `linux/filter.h`.
const MEMORY_WORDS: usize = 16;

/// `sizeof(struct seccomp_data)`.
const DATA_BYTES: u32 = 64;

/// Names of the calls of the x86-64 interface that a thread's filters let through with some arguments; `None` where it has no filter. The
/// thread stands still meanwhile.
///
/// # Errors
/// Those of ptrace(2): `EPERM` without the right to trace it, `EACCES` without `CAP_SYS_ADMIN`, `ESRCH` where there is no such thread;
/// `Unsupported` of a kernel without `CONFIG_CHECKPOINT_RESTORE`.
pub fn allowed_calls(thread: i32) -> io::Result<Option<BTreeSet<&'static str>>> {
    let filters = StoppedThread::stop(thread)?.seccomp_filters()?;
    if filters.is_empty() {
        return Ok(None);
    }
    let calls = (0..Sysno::table_size()).filter_map(Sysno::new);
    let allowed = |call: &Sysno| {
        let number = call.id().unsigned_abs();
        filters.iter().all(|filter| may_allow(filter, number))
    };
    Ok(Some(calls.filter(allowed).map(|call| call.name()).collect()))
}

/// What a filter has in front of it. `None` is a word that depends on arguments.
#[derive(Clone, PartialEq, Eq, Hash)]
struct State {
    /// Index of the instruction.
    at: usize,
    accumulator: Option<u32>,
    index: Option<u32>,
    memory: [Option<u32>; MEMORY_WORDS],
}

/// Where an instruction leads.
enum Next {
    /// To these, one of them or both.
    To(Vec<State>),
    /// To an end that lets the call through, or does not.
    End { allows: bool },
}

/// Whether a filter lets a call of the x86-64 interface through with some arguments. The kernel has checked that a filter only jumps
/// forward and ends by a return; one that does not is taken to allow everything.
pub(super) fn may_allow(filter: &[sock_filter], number: u32) -> bool {
    let mut left = vec![State {
        at: 0,
        accumulator: Some(0),
        index: Some(0),
        memory: [Some(0); MEMORY_WORDS],
    }];
    let mut seen = HashSet::new();
    while let Some(state) = left.pop() {
        match filter
            .get(state.at)
            .and_then(|instruction| step(instruction, &state, number))
        {
            None | Some(Next::End { allows: true }) => return true,
            Some(Next::End { allows: false }) => {}
            Some(Next::To(states)) => {
                left.extend(states.into_iter().filter(|state| seen.insert(state.clone())))
            }
        }
        if seen.len() > MOST_STATES {
            return true;
        }
    }
    false
}

/// One instruction, of those that seccomp takes (`seccomp_check_filter` in kernel/seccomp.c); `None` for others.
fn step(instruction: &sock_filter, state: &State, number: u32) -> Option<Next> {
    let code = u32::from(instruction.code);
    let operand = instruction.k;
    let slot = usize::try_from(operand).ok();
    let mut next = State {
        at: state.at + 1,
        ..state.clone()
    };
    let source = if code & libc::BPF_X == 0 {
        Some(operand)
    } else {
        state.index
    };
    match code & 0x07 {
        libc::BPF_LD => {
            next.accumulator = match code & 0xe0 {
                libc::BPF_ABS => word_of_data(operand, number),
                libc::BPF_IMM => Some(operand),
                libc::BPF_MEM => *state.memory.get(slot?)?,
                libc::BPF_LEN => Some(DATA_BYTES),
                _ => return None,
            }
        }
        libc::BPF_LDX => {
            next.index = match code & 0xe0 {
                libc::BPF_IMM => Some(operand),
                libc::BPF_MEM => *state.memory.get(slot?)?,
                libc::BPF_LEN => Some(DATA_BYTES),
                _ => return None,
            }
        }
        libc::BPF_ST => *next.memory.get_mut(slot?)? = state.accumulator,
        libc::BPF_STX => *next.memory.get_mut(slot?)? = state.index,
        libc::BPF_ALU => next.accumulator = computed(code & 0xf0, state.accumulator, source)?,
        libc::BPF_JMP => return jump(instruction, state, source),
        libc::BPF_RET => return Some(returned(code, operand, state.accumulator)),
        _ if code & 0xf8 == TXA => next.accumulator = state.index,
        _ => next.index = state.accumulator,
    }
    Some(Next::To(vec![next]))
}

/// `BPF_TXA` of `linux/filter.h`; the other instruction of its class is the way back.
const TXA: u32 = 0x80;

/// A word of `struct seccomp_data`: the call's number and the interface are known, all else depends on the call.
fn word_of_data(offset: u32, number: u32) -> Option<u32> {
    match offset {
        0 => Some(number),
        4 => Some(Interface::X86_64.audit_architecture()),
        _ => None,
    }
}

/// The outer `None` is of an operation that there is not; dividing by zero is the kernel's to refuse, or ends the filter with a death.
fn computed(operation: u32, left: Option<u32>, right: Option<u32>) -> Option<Option<u32>> {
    let compute: fn(u32, u32) -> u32 = match operation {
        libc::BPF_ADD => u32::wrapping_add,
        libc::BPF_SUB => u32::wrapping_sub,
        libc::BPF_MUL => u32::wrapping_mul,
        libc::BPF_DIV => |left, right| left.checked_div(right).unwrap_or_default(),
        libc::BPF_OR => |left, right| left | right,
        libc::BPF_AND => |left, right| left & right,
        libc::BPF_XOR => |left, right| left ^ right,
        libc::BPF_LSH => |left, right| left.checked_shl(right).unwrap_or_default(),
        libc::BPF_RSH => |left, right| left.checked_shr(right).unwrap_or_default(),
        libc::BPF_NEG => return Some(left.map(u32::wrapping_neg)),
        _ => return None,
    };
    Some(left.zip(right).map(|(left, right)| compute(left, right)))
}

fn jump(instruction: &sock_filter, state: &State, right: Option<u32>) -> Option<Next> {
    let to = |distance: usize| State {
        at: state.at + 1 + distance,
        ..state.clone()
    };
    let holds: fn(u32, u32) -> bool = match u32::from(instruction.code) & 0xf0 {
        libc::BPF_JA => return Some(Next::To(vec![to(usize::try_from(instruction.k).ok()?)])),
        libc::BPF_JEQ => |left, right| left == right,
        libc::BPF_JGT => |left, right| left > right,
        libc::BPF_JGE => |left, right| left >= right,
        libc::BPF_JSET => |left, right| left & right != 0,
        _ => return None,
    };
    let (jt, jf) = (usize::from(instruction.jt), usize::from(instruction.jf));
    Some(Next::To(match state.accumulator.zip(right) {
        Some((left, right)) => vec![to(if holds(left, right) { jt } else { jf })],
        None => vec![to(jt), to(jf)],
    }))
}

/// What a filter that depends on arguments returns may be anything.
fn returned(code: u32, operand: u32, accumulator: Option<u32>) -> Next {
    let value = if code & 0x18 == libc::BPF_K {
        Some(operand)
    } else {
        accumulator
    };
    let allows = value.is_none_or(|value| {
        let action = value & libc::SECCOMP_RET_ACTION_FULL;
        matches!(action, libc::SECCOMP_RET_ALLOW | libc::SECCOMP_RET_LOG)
    });
    Next::End { allows }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As `BPF_STMT` and `BPF_JUMP`.
    fn statement(code: u32, k: u32) -> sock_filter {
        branch(code, k, 0, 0)
    }

    fn branch(code: u32, k: u32, jt: u8, jf: u8) -> sock_filter {
        let code = u16::try_from(code).unwrap();
        sock_filter { code, jt, jf, k }
    }

    const LOAD: u32 = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
    const EQUAL: u32 = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
    const RETURN: u32 = libc::BPF_RET | libc::BPF_K;

    #[test]
    fn a_number_decides_and_arguments_may() {
        let filter = [
            statement(LOAD, 4),
            branch(EQUAL, 0xc000_003e, 1, 0),
            statement(RETURN, libc::SECCOMP_RET_KILL_PROCESS),
            statement(LOAD, 0),
            branch(EQUAL, 1, 3, 0),
            branch(EQUAL, 2, 0, 3),
            // Call 2 with an argument.
            statement(LOAD, 16),
            branch(EQUAL, 7, 0, 1),
            statement(RETURN, libc::SECCOMP_RET_ALLOW),
            statement(RETURN, libc::SECCOMP_RET_ERRNO | 1),
        ];
        let allowed: Vec<u32> = (0..5).filter(|number| may_allow(&filter, *number)).collect();
        assert_eq!(allowed, [1, 2]);
    }

    #[test]
    fn what_is_computed_of_the_number_is_known() {
        let alu = |operation: u32| libc::BPF_ALU | operation | libc::BPF_K;
        let filter = |end: &[sock_filter]| {
            let start = [
                statement(LOAD, 0),
                statement(libc::BPF_ST, 3),
                statement(libc::BPF_LDX | libc::BPF_MEM, 3),
                statement(libc::BPF_LD | libc::BPF_IMM, 40),
                statement(libc::BPF_ALU | libc::BPF_ADD | libc::BPF_X, 0),
                statement(alu(libc::BPF_LSH), 1),
            ];
            [&start, end].concat()
        };
        // (40 + 2) << 1
        let end = [
            branch(EQUAL, 84, 0, 1),
            statement(RETURN, libc::SECCOMP_RET_LOG),
            statement(RETURN, libc::SECCOMP_RET_TRAP),
        ];
        let filter = filter(&end);
        assert!(may_allow(&filter, 2) && !may_allow(&filter, 3));
    }

    #[test]
    fn what_is_not_understood_may_allow() {
        assert!(may_allow(&[], 1));
        assert!(may_allow(&[statement(0xffff, 0)], 1));
        assert!(may_allow(&[branch(libc::BPF_JMP, 1000, 0, 0)], 1));
        let unknown = [statement(LOAD, 24), statement(libc::BPF_RET | libc::BPF_A, 0)];
        assert!(may_allow(&unknown, 1));
        assert!(!may_allow(&[statement(RETURN, libc::SECCOMP_RET_ERRNO)], 1));
    }

    #[test]
    fn a_filter_of_very_many_ways_comes_to_an_end() {
        // Every argument word is asked about again and again, and remembered: 2^40 ways.
        let mut filter = Vec::new();
        for turn in 0..40 {
            filter.push(statement(LOAD, 16 + 8 * (turn % 6)));
            filter.push(branch(EQUAL, turn, 0, 2));
            filter.push(statement(libc::BPF_LD | libc::BPF_IMM, turn));
            filter.push(statement(libc::BPF_ST, turn % 16));
        }
        filter.push(statement(RETURN, libc::SECCOMP_RET_ERRNO));
        assert!(may_allow(&filter, 1));
    }
}
