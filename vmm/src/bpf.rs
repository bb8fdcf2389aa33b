//! Seccomp filters that find a system call by binary search.
//!
//! A list of comparisons is as good a filter, but the kernel walks each filter once for every system call there is when
//! it is installed (`seccomp_cache_prepare_bitmap` in kernel/seccomp.c), to know which calls it need not ask about. With
//! three filters of some seventy calls that walk was the costliest part of a machine's start.

use seccompiler::{BpfProgram, sock_filter};

/// A condition on an argument, counted from 0, of which the lower 32 bits count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Argument {
    /// It has this value.
    Is(u8, u32),
    /// It has none of these bits.
    HasNone(u8, u32),
}

/// The calls that are allowed: for each its number, and conditions that must all hold. A number may occur more than once;
/// then it is enough if the conditions of one hold.
pub(crate) type Allowed<'a> = [(u32, &'a [Argument])];

/// No filter can be made of a list: it is more than a hundred calls long, so that a jump would be too far, or a number is none.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the list of system calls does not fit a filter")]
pub struct Unfit;

// Classic BPF (include/uapi/linux/bpf_common.h): a load of a word at a fixed offset, jumps on a constant, return.
const LOAD: u16 = 0x20;
const JUMP_IF_EQUAL: u16 = 0x15;
const JUMP_IF_AT_LEAST: u16 = 0x35;
const JUMP_IF_ANY_SET: u16 = 0x45;
const RETURN: u16 = 0x06;

// What a filter looks at: struct seccomp_data (include/uapi/linux/seccomp.h).
const CALL_NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const ARGUMENTS: u32 = 16;
const ARGUMENT_BYTES: u32 = 8;
/// `AUDIT_ARCH_X86_64` (include/uapi/linux/audit.h).
const ARCHITECTURE_X86_64: u32 = 0xc000_003e;

// What a filter answers (the same file).
const KILL_PROCESS: u32 = 0x8000_0000;
const ALLOW: u32 = 0x7fff_0000;

/// What becomes of the call numbers from one on, up to the next of which something is said.
#[derive(Clone, PartialEq, Eq)]
enum Verdict<'a> {
    Kill,
    Allow,
    /// It is enough if all conditions of one of these hold.
    If(Vec<&'a [Argument]>),
}

/// A filter that allows what is listed and kills the process at anything else.
///
/// # Errors
/// [`Unfit`].
pub(crate) fn compile(allowed: &Allowed<'_>) -> Result<BpfProgram, Unfit> {
    let mut program = Backwards::default();
    let places = Places {
        kill: program.push(RETURN, KILL_PROCESS),
        allow: program.push(RETURN, ALLOW),
    };
    let start = program.search(&ranges(allowed), places)?;
    program.go_to(start)?;
    program.push(LOAD, CALL_NUMBER);
    let right = program.place();
    program.jump(JUMP_IF_EQUAL, ARCHITECTURE_X86_64, right, places.kill)?;
    program.push(LOAD, ARCHITECTURE);
    program.0.reverse();
    Ok(program.0)
}

/// The verdicts by the first call number of each, in order, beginning with number 0. Neighbours differ.
fn ranges<'a>(allowed: &Allowed<'a>) -> Vec<(u32, Verdict<'a>)> {
    let mut calls = allowed.to_vec();
    calls.sort_unstable_by_key(|(number, _)| *number);
    let mut ranges = vec![(0, Verdict::Kill)];
    for calls in calls.chunk_by(|one, other| one.0 == other.0) {
        let Some((number, _)) = calls.first().copied() else {
            continue;
        };
        let verdict = match calls.iter().any(|(_, conditions)| conditions.is_empty()) {
            true => Verdict::Allow,
            false => Verdict::If(calls.iter().map(|(_, conditions)| *conditions).collect()),
        };
        // After the call before this one comes a range that kills; it is empty where the two are neighbours.
        if ranges.last().is_some_and(|(start, _)| *start == number) {
            ranges.pop();
        }
        if ranges.last().is_none_or(|(_, last)| *last != verdict) {
            ranges.push((number, verdict));
        }
        ranges.push((number + 1, Verdict::Kill));
    }
    ranges
}

/// Where the two answers stand.
#[derive(Clone, Copy)]
struct Places {
    kill: usize,
    allow: usize,
}

/// A program that is written from its end: jumps only go forward, so what they go to is there already. A place is the
/// number of instructions from it to the end.
#[derive(Default)]
struct Backwards(BpfProgram);

impl Backwards {
    /// The place of what was written last.
    fn place(&self) -> usize {
        self.0.len()
    }

    fn push(&mut self, code: u16, value: u32) -> usize {
        self.0.push(sock_filter {
            code,
            jt: 0,
            jf: 0,
            k: value,
        });
        self.place()
    }

    /// A comparison with `value`, and where to go if it holds and if not.
    fn jump(&mut self, code: u16, value: u32, if_true: usize, if_false: usize) -> Result<usize, Unfit> {
        let from_here = |place| u8::try_from(self.place() - place).map_err(|_| Unfit);
        let instruction = sock_filter {
            code,
            jt: from_here(if_true)?,
            jf: from_here(if_false)?,
            k: value,
        };
        self.0.push(instruction);
        Ok(self.place())
    }

    /// Nothing, if `place` is the next one anyway.
    fn go_to(&mut self, place: usize) -> Result<(), Unfit> {
        if place != self.place() {
            self.jump(JUMP_IF_EQUAL, 0, place, place)?;
        }
        Ok(())
    }

    /// Code that looks for the range of the number that was loaded.
    fn search(&mut self, ranges: &[(u32, Verdict<'_>)], places: Places) -> Result<usize, Unfit> {
        match ranges {
            [] => Ok(places.kill),
            [(_, verdict)] => self.check(verdict, places),
            _ => {
                let (low, high) = ranges.split_at(ranges.len() / 2);
                let start = high.first().map_or(0, |(start, _)| *start);
                let if_high = self.search(high, places)?;
                let if_low = self.search(low, places)?;
                self.jump(JUMP_IF_AT_LEAST, start, if_high, if_low)
            }
        }
    }

    /// Code for one verdict.
    fn check(&mut self, verdict: &Verdict<'_>, places: Places) -> Result<usize, Unfit> {
        let rules = match verdict {
            Verdict::Kill => return Ok(places.kill),
            Verdict::Allow => return Ok(places.allow),
            Verdict::If(rules) => rules,
        };
        let mut otherwise = places.kill;
        for rule in rules.iter().rev() {
            let mut next = places.allow;
            for condition in rule.iter().rev() {
                let argument = match condition {
                    Argument::Is(argument, value) => {
                        self.jump(JUMP_IF_EQUAL, *value, next, otherwise)?;
                        argument
                    }
                    Argument::HasNone(argument, bits) => {
                        self.jump(JUMP_IF_ANY_SET, *bits, otherwise, next)?;
                        argument
                    }
                };
                next = self.push(LOAD, ARGUMENTS + u32::from(*argument) * ARGUMENT_BYTES);
            }
            otherwise = next;
        }
        Ok(otherwise)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a filter says of a call, and after how many instructions.
    fn run(program: &[sock_filter], architecture: u32, number: u32, arguments: [u32; 6]) -> (u32, usize) {
        let (mut accumulator, mut at, mut steps) = (0, 0, 0);
        loop {
            let instruction = &program[at];
            (at, steps) = (at + 1, steps + 1);
            let test = match instruction.code {
                LOAD => {
                    accumulator = match instruction.k {
                        CALL_NUMBER => number,
                        ARCHITECTURE => architecture,
                        offset => {
                            assert_eq!(offset % ARGUMENT_BYTES, 0);
                            arguments[usize::try_from((offset - ARGUMENTS) / ARGUMENT_BYTES).unwrap()]
                        }
                    };
                    continue;
                }
                RETURN => return (instruction.k, steps),
                JUMP_IF_EQUAL => accumulator == instruction.k,
                JUMP_IF_AT_LEAST => accumulator >= instruction.k,
                JUMP_IF_ANY_SET => accumulator & instruction.k != 0,
                code => panic!("{code:#x}"),
            };
            at += usize::from(if test { instruction.jt } else { instruction.jf });
        }
    }

    const ALLOWED: &Allowed<'_> = &[
        (0, &[]),
        (1, &[]),
        (9, &[Argument::HasNone(2, 4)]),
        (10, &[Argument::Is(0, 7), Argument::HasNone(5, 3)]),
        (12, &[]),
        (16, &[Argument::Is(1, 0xae80)]),
        (16, &[Argument::Is(1, 0xae81)]),
        (231, &[]),
    ];

    #[test]
    fn what_is_listed_is_allowed_and_nothing_else() {
        let program = compile(ALLOWED).unwrap();
        for number in (0..1000).chain([0x4000_0000, 0x4000_0001, u32::MAX]) {
            let check = |arguments: [u32; 6], expected: bool| {
                let (verdict, _) = run(&program, ARCHITECTURE_X86_64, number, arguments);
                let expected = if expected { ALLOW } else { KILL_PROCESS };
                assert_eq!(verdict, expected, "call {number} with {arguments:?}");
            };
            let always = [0, 1, 12, 231].contains(&number);
            check([7, 0xae80, 3, 0, 0, 0], always || [9, 10, 16].contains(&number));
            check([7, 0xae81, 4, 0, 0, 0], always || [10, 16].contains(&number));
            check([7, 0xae82, 4, 0, 0, 0], always || number == 10);
            check([7, 0, 4, 0, 0, 2], always);
            check([6, 0, 4, 0, 0, 0], always);
        }
    }

    #[test]
    fn another_architectures_numbers_mean_something_else() {
        let program = compile(ALLOWED).unwrap();
        assert_eq!(run(&program, 0x4000_0003, 1, [0; 6]).0, KILL_PROCESS);
    }

    #[test]
    fn a_search_is_short() {
        let calls: Vec<(u32, &[Argument])> = (0..100).map(|number| (3 * number, &[][..])).collect();
        let program = compile(&calls).unwrap();
        for number in 0..400 {
            let (_, steps) = run(&program, ARCHITECTURE_X86_64, number, [0; 6]);
            assert!(steps <= 13, "{number}: {steps}");
        }
    }

    #[test]
    fn a_list_that_is_too_long_is_refused() {
        let calls: Vec<(u32, &[Argument])> = (0..300).map(|number| (2 * number, &[][..])).collect();
        assert_eq!(compile(&calls).err(), Some(Unfit));
        assert_eq!(compile(&[]).unwrap().len(), 6);
    }
}
