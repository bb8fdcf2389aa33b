//! Code generation: classic BPF as seccomp(2) takes it, see `Documentation/userspace-api/seccomp_filter.rst`.
//!
//! The program looks at the architecture, then finds the verdict for the number by binary search, so that its cost grows
//! with the logarithm of the profile. Conditional jumps reach 255 instructions ahead only; where a subtree is longer, an
//! unconditional jump, which has 32 bits, stands between.

use std::collections::BTreeMap;

use super::numbers::{Interface, X32_BIT};
use super::{Action, Comparison, Condition, Policy, Verdict};

/// `BPF_MAXINSNS` of `linux/bpf_common.h`.
pub(super) const MAXIMUM_INSTRUCTIONS: usize = 4096;

/// `(code, jt, jf, k)`.
type Instruction = (u16, u8, u8, u32);

// `linux/bpf_common.h`: class, size or operation, mode or source.
pub(super) const LOAD: u16 = 0x20;
pub(super) const AND: u16 = 0x54;
pub(super) const JUMP: u16 = 0x05;
pub(super) const JUMP_EQUAL: u16 = 0x15;
pub(super) const JUMP_GREATER: u16 = 0x25;
pub(super) const JUMP_GREATER_OR_EQUAL: u16 = 0x35;
pub(super) const RETURN: u16 = 0x06;

/// Offsets in `struct seccomp_data`, `linux/seccomp.h`.
const NUMBER_OFFSET: u32 = 0;
const ARCHITECTURE_OFFSET: u32 = 4;
const ARGUMENTS_OFFSET: u32 = 16;

/// Makes the program, or nothing if it is too long for the kernel.
pub(super) fn compile(policies: &BTreeMap<Interface, Policy>) -> Option<Vec<Instruction>> {
    let tree = |interface| policies.get(&interface).map(compile_policy);
    let kill = || vec![compile_return(Action::KILL_THREAD)];
    // x32 shares the architecture with x86-64; numbers in between belong to nobody.
    let native = tree(Interface::X86_64).unwrap_or_else(kill);
    let native = branch(
        JUMP_GREATER_OR_EQUAL,
        X32_BIT,
        tree(Interface::X32).unwrap_or_else(kill),
        native,
    )?;
    let mut program = vec![(LOAD, 0, 0, ARCHITECTURE_OFFSET)];
    let load_number = || [(LOAD, 0, 0, NUMBER_OFFSET)].into_iter();
    let other = match tree(Interface::X86) {
        Some(tree) => {
            let tree = load_number().chain(tree).collect();
            branch(JUMP_EQUAL, Interface::X86.audit_architecture(), tree, kill())?
        }
        None => kill(),
    };
    let native = load_number().chain(native).collect();
    program.extend(branch(
        JUMP_EQUAL,
        Interface::X86_64.audit_architecture(),
        native,
        other,
    )?);
    (program.len() <= MAXIMUM_INSTRUCTIONS).then_some(program)
}

/// `if ACCUMULATOR test value { yes } else { no }`, where both parts end in a return.
fn branch(test: u16, value: u32, yes: Vec<Instruction>, no: Vec<Instruction>) -> Option<Vec<Instruction>> {
    let mut program = match u8::try_from(no.len()) {
        Ok(distance) => vec![(test, distance, 0, value)],
        Err(_) => vec![(test, 0, 1, value), (JUMP, 0, 0, u32::try_from(no.len()).ok()?)],
    };
    program.extend(no);
    program.extend(yes);
    Some(program)
}

fn compile_return(action: Action) -> Instruction {
    (RETURN, 0, 0, action.0)
}

/// The accumulator holds the number.
fn compile_policy(policy: &Policy) -> Vec<Instruction> {
    // Neighbours with the same verdict are one interval.
    let mut intervals: Vec<(u32, &Verdict)> = Vec::new();
    for (&start, verdict) in policy {
        if intervals.last().is_none_or(|&(_, last)| last != verdict) {
            intervals.push((start, verdict));
        }
    }
    search(&intervals)
}

fn search(intervals: &[(u32, &Verdict)]) -> Vec<Instruction> {
    match intervals {
        [] => vec![compile_return(Action::KILL_THREAD)],
        [(_, verdict)] => compile_verdict(verdict),
        _ => {
            let (low, high) = intervals.split_at(intervals.len() / 2);
            let boundary = high.first().map_or(0, |&(start, _)| start);
            // A part that is too long for a jump is too long for the kernel; the caller sees that by its length.
            branch(JUMP_GREATER_OR_EQUAL, boundary, search(high), search(low)).unwrap_or_default()
        }
    }
}

fn compile_verdict(verdict: &Verdict) -> Vec<Instruction> {
    let mut program = Vec::new();
    for rule in &verdict.rules {
        let tests: Vec<Step> = rule
            .conditions
            .iter()
            .flat_map(|&condition| compile_condition(condition))
            .collect();
        program.extend(link(&tests));
        program.push(compile_return(rule.action));
    }
    program.push(compile_return(verdict.otherwise));
    program
}

/// Where a test goes on.
#[derive(Clone, Copy)]
enum Target {
    /// The next instruction.
    Next,
    /// The condition holds: go over this many instructions, which end it.
    Holds(u8),
    /// The condition fails: to the next rule.
    Fails,
}

/// An instruction whose jumps are not yet distances.
#[derive(Clone, Copy)]
enum Step {
    Plain(Instruction),
    Test {
        test: u16,
        value: u32,
        yes: Target,
        no: Target,
    },
}

fn compile_condition(condition: Condition) -> Vec<Step> {
    use Target::{Fails, Holds, Next};
    let offset = ARGUMENTS_OFFSET + 8 * u32::from(condition.argument);
    let load_low = Step::Plain((LOAD, 0, 0, offset));
    let load_high = Step::Plain((LOAD, 0, 0, offset + 4));
    let and = |mask| Step::Plain((AND, 0, 0, mask));
    let test = |test, value, yes, no| Step::Test { test, value, yes, no };
    // Compares the upper halves: decided by them, unless they are equal.
    let ordered = |value, greater, less, last| {
        let (high, low) = halves(value);
        // Over the test for equality, the load and the last test.
        let decided = |target| {
            if matches!(target, Holds(_)) {
                Holds(3)
            } else {
                target
            }
        };
        let less = if matches!(less, Holds(_)) { Holds(2) } else { less };
        let (code, yes, no) = last;
        vec![
            load_high,
            test(JUMP_GREATER, high, decided(greater), Next),
            test(JUMP_EQUAL, high, Next, less),
            load_low,
            test(code, low, yes, no),
        ]
    };
    match condition.comparison {
        Comparison::Equal(value) => {
            let (high, low) = halves(value);
            vec![
                load_high,
                test(JUMP_EQUAL, high, Next, Fails),
                load_low,
                test(JUMP_EQUAL, low, Next, Fails),
            ]
        }
        Comparison::NotEqual(value) => {
            let (high, low) = halves(value);
            vec![
                load_high,
                test(JUMP_EQUAL, high, Next, Holds(2)),
                load_low,
                test(JUMP_EQUAL, low, Fails, Next),
            ]
        }
        Comparison::MaskedEqual { mask, value } => {
            let ((mask_high, mask_low), (high, low)) = (halves(mask), halves(value));
            vec![
                load_high,
                and(mask_high),
                test(JUMP_EQUAL, high, Next, Fails),
                load_low,
                and(mask_low),
                test(JUMP_EQUAL, low, Next, Fails),
            ]
        }
        Comparison::Greater(value) => ordered(value, Holds(0), Fails, (JUMP_GREATER, Next, Fails)),
        Comparison::GreaterOrEqual(value) => {
            ordered(value, Holds(0), Fails, (JUMP_GREATER_OR_EQUAL, Next, Fails))
        }
        Comparison::Less(value) => ordered(value, Fails, Holds(0), (JUMP_GREATER_OR_EQUAL, Fails, Next)),
        Comparison::LessOrEqual(value) => ordered(value, Fails, Holds(0), (JUMP_GREATER, Fails, Next)),
    }
}

/// Upper and lower 32 bits.
fn halves(value: u64) -> (u32, u32) {
    let [a, b, c, d, e, f, g, h] = value.to_be_bytes();
    (u32::from_be_bytes([a, b, c, d]), u32::from_be_bytes([e, f, g, h]))
}

/// Turns targets into distances. A rule has at most six conditions of at most six instructions and a return, so that
/// every distance fits a byte.
fn link(steps: &[Step]) -> Vec<Instruction> {
    (1u8..)
        .zip(steps)
        .map(|(position, step)| match *step {
            Step::Plain(instruction) => instruction,
            Step::Test { test, value, yes, no } => {
                let distance = |target| match target {
                    Target::Next => 0,
                    Target::Holds(over) => over,
                    // Over the rest of the tests and the return after them.
                    Target::Fails => {
                        u8::try_from(steps.len())
                            .unwrap_or(u8::MAX)
                            .saturating_sub(position)
                            + 1
                    }
                };
                (test, distance(yes), distance(no), value)
            }
        })
        .collect()
}
