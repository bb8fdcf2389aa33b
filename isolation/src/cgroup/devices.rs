//! Device access in cgroup v2 is decided by an eBPF program of type `BPF_PROG_TYPE_CGROUP_DEVICE`. This compiles the
//! rules of `linux.resources.devices` into one.
//!
//! Rules apply in order, a later one wins, each bit of the access (read, write, mknod) on its own. So the program goes
//! through them backwards with the bits that are still undecided in a register: an allowing rule clears the bits it
//! grants, a denying rule that meets one of them ends it, and what no rule mentions is denied.

use oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceType};
use serde::{Deserialize, Serialize};

use crate::plan::Error;

/// Access bits of `struct bpf_cgroup_dev_ctx`, `include/uapi/linux/bpf.h`.
const MKNOD: u8 = 1;
const READ: u8 = 2;
const WRITE: u8 = 4;
const ALL: u8 = MKNOD | READ | WRITE;

/// Which kind of device a rule is about, with the number the kernel has for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Kind {
    Block = 1,
    Character = 2,
}

/// One rule: what it matches, what it allows or denies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Rule {
    allow: bool,
    kind: Option<Kind>,
    major: Option<u32>,
    minor: Option<u32>,
    access: u8,
}

impl Rule {
    /// The rules of a Spec, followed by those for the devices that every container has (OCI runtime specification,
    /// config-linux, "Default Devices") and for making any device node, which is of no use without one of the others.
    pub(crate) fn all(specified: &[LinuxDeviceCgroup]) -> Result<Vec<Rule>, Error> {
        let mut rules = specified
            .iter()
            .enumerate()
            .map(Rule::new)
            .collect::<Result<Vec<_>, _>>()?;
        let any = |kind| Rule {
            allow: true,
            kind: Some(kind),
            major: None,
            minor: None,
            access: MKNOD,
        };
        rules.extend([any(Kind::Block), any(Kind::Character)]);
        // null, zero, full, random, urandom, tty, ptmx and all pts.
        let standard = [
            (1, Some(3)),
            (1, Some(5)),
            (1, Some(7)),
            (1, Some(8)),
            (1, Some(9)),
            (5, Some(0)),
        ];
        for (major, minor) in standard.into_iter().chain([(5, Some(2)), (136, None)]) {
            let kind = Some(Kind::Character);
            rules.push(Rule {
                allow: true,
                kind,
                major: Some(major),
                minor,
                access: ALL,
            });
        }
        Ok(rules)
    }

    fn new((index, rule): (usize, &LinuxDeviceCgroup)) -> Result<Rule, Error> {
        let field = |name: &str| format!("linux.resources.devices[{index}].{name}");
        let number = |name: &str, number: Option<i64>| match number {
            // The specification leaves out what matches everything; -1 is an old way to say the same.
            None | Some(-1) => Ok(None),
            Some(number) => u32::try_from(number).map(Some).map_err(|_| Error::Invalid {
                field: field(name),
                reason: format!("{number} is no device number"),
            }),
        };
        let kind = match rule.typ().unwrap_or_default() {
            LinuxDeviceType::A => None,
            LinuxDeviceType::B => Some(Kind::Block),
            LinuxDeviceType::C | LinuxDeviceType::U => Some(Kind::Character),
            LinuxDeviceType::P => {
                return Err(Error::Invalid {
                    field: field("type"),
                    reason: "a FIFO is no device".into(),
                });
            }
        };
        let mut access = 0;
        for letter in rule
            .access()
            .as_deref()
            .filter(|access| !access.is_empty())
            .unwrap_or("rwm")
            .chars()
        {
            access |= match letter {
                'r' => READ,
                'w' => WRITE,
                'm' => MKNOD,
                _ => {
                    let reason = format!("{letter:?} is none of r, w and m");
                    return Err(Error::Invalid {
                        field: field("access"),
                        reason,
                    });
                }
            };
        }
        let (major, minor) = (number("major", rule.major())?, number("minor", rule.minor())?);
        Ok(Rule {
            allow: rule.allow(),
            kind,
            major,
            minor,
            access,
        })
    }

    /// Whether it decides every access to every device.
    fn is_final(self) -> bool {
        self.kind.is_none() && self.major.is_none() && self.minor.is_none() && self.access == ALL
    }
}

/// Operation codes of eBPF, `Documentation/bpf/standardization/instruction-set.rst`.
mod op {
    pub(super) const LOAD_WORD: u8 = 0x61;
    pub(super) const MOVE_REGISTER: u8 = 0xbf;
    pub(super) const MOVE: u8 = 0xb7;
    pub(super) const AND: u8 = 0x57;
    pub(super) const SHIFT_RIGHT: u8 = 0x77;
    pub(super) const JUMP: u8 = 0x05;
    /// 32 bits wide, so that numbers above `i32::MAX` are not sign-extended.
    pub(super) const JUMP_UNLESS_EQUAL: u8 = 0x56;
    pub(super) const JUMP_IF_ANY_BIT: u8 = 0x45;
    pub(super) const EXIT: u8 = 0x95;
}

/// Registers: R0 is the result, R1 points to the context, the others are ours.
const RESULT: u8 = 0;
const CONTEXT: u8 = 1;
const KIND: u8 = 2;
const ACCESS: u8 = 3;
const MAJOR: u8 = 4;
const MINOR: u8 = 5;

/// The two registers of an instruction.
#[derive(Clone, Copy)]
struct Registers {
    destination: u8,
    source: u8,
}

/// Encodes one instruction as the 64 bits the kernel reads, in little-endian order of fields.
fn instruction(code: u8, registers: Registers, offset: i16, immediate: u32) -> u64 {
    u64::from(code)
        | u64::from(registers.destination) << 8
        | u64::from(registers.source) << 12
        | u64::from(offset.cast_unsigned()) << 16
        | u64::from(immediate) << 32
}

fn on(destination: u8) -> Registers {
    Registers {
        destination,
        source: 0,
    }
}

/// Makes the program: it returns 1 to allow an access and 0 to deny it.
pub(super) fn compile(rules: &[Rule]) -> Vec<u64> {
    let load = |destination, offset| {
        instruction(
            op::LOAD_WORD,
            Registers {
                destination,
                source: CONTEXT,
            },
            offset,
            0,
        )
    };
    // The first word of the context is the access in the upper half and the kind in the lower.
    let mut program = vec![
        load(KIND, 0),
        instruction(
            op::MOVE_REGISTER,
            Registers {
                destination: ACCESS,
                source: KIND,
            },
            0,
            0,
        ),
        instruction(op::AND, on(KIND), 0, 0xffff),
        instruction(op::SHIFT_RIGHT, on(ACCESS), 0, 16),
        load(MAJOR, 4),
        load(MINOR, 8),
    ];
    for &rule in rules.iter().rev() {
        if rule.is_final() {
            // What follows could never run, and the verifier refuses such code.
            program.extend(answer(rule.allow));
            return program;
        }
        program.extend(compile_rule(rule));
    }
    program.extend(answer(false));
    program
}

fn answer(allow: bool) -> [u64; 2] {
    [
        instruction(op::MOVE, on(RESULT), 0, u32::from(allow)),
        instruction(op::EXIT, on(RESULT), 0, 0),
    ]
}

fn compile_rule(rule: Rule) -> Vec<u64> {
    let access = u32::from(rule.access);
    let mut action = if rule.allow {
        vec![
            instruction(op::AND, on(ACCESS), 0, u32::from(ALL & !rule.access)),
            // Over the two instructions of the answer, while something is undecided.
            instruction(op::JUMP_UNLESS_EQUAL, on(ACCESS), 2, 0),
        ]
    } else {
        vec![
            instruction(op::JUMP_IF_ANY_BIT, on(ACCESS), 1, access),
            instruction(op::JUMP, on(RESULT), 2, 0),
        ]
    };
    action.extend(answer(rule.allow));
    let tests = [
        (KIND, rule.kind.map(|kind| kind as u32)),
        (MAJOR, rule.major),
        (MINOR, rule.minor),
    ];
    let tests: Vec<_> = tests
        .into_iter()
        .filter_map(|(register, value)| Some((register, value?)))
        .collect();
    // A failed test goes over the tests after it and over the action.
    let offsets = (0i16..)
        .skip(action.len())
        .take(tests.len())
        .collect::<Vec<_>>()
        .into_iter()
        .rev();
    let tests = tests
        .into_iter()
        .zip(offsets)
        .map(|((register, value), offset)| instruction(op::JUMP_UNLESS_EQUAL, on(register), offset, value));
    tests.collect::<Vec<_>>().into_iter().chain(action).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The lower half of a register.
    #[expect(clippy::cast_possible_truncation, reason = "this is what the kernel does")]
    fn low(register: u64) -> u32 {
        register as u32
    }

    /// Runs the subset of eBPF that [`compile`] makes.
    fn run(program: &[u64], access: u32, major: u32, minor: u32) -> u64 {
        let context = [access, major, minor];
        let mut registers = [0u64; 11];
        let mut at = 0usize;
        loop {
            let word = program[at];
            let [code, pair, near, far, ..] = word.to_le_bytes();
            let (destination, source) = (usize::from(pair & 15), usize::from(pair >> 4));
            let offset = i16::from_le_bytes([near, far]);
            let immediate = low(word >> 32);
            let mut jump = false;
            match code {
                op::LOAD_WORD => {
                    registers[destination] = context[usize::try_from(offset).unwrap() / 4].into()
                }
                op::MOVE_REGISTER => registers[destination] = registers[source],
                op::MOVE => registers[destination] = immediate.into(),
                op::AND => registers[destination] &= i64::from(immediate.cast_signed()).cast_unsigned(),
                op::SHIFT_RIGHT => registers[destination] >>= immediate,
                op::JUMP => jump = true,
                op::JUMP_UNLESS_EQUAL => jump = low(registers[destination]) != immediate,
                op::JUMP_IF_ANY_BIT => jump = registers[destination] & u64::from(immediate) != 0,
                op::EXIT => return registers[0],
                _ => panic!("operation {code:#x}"),
            }
            at = at
                .checked_add_signed(1 + if jump { offset.into() } else { 0 })
                .unwrap();
        }
    }

    /// What the rules say, in the words of the specification: in order, later ones win, bit by bit.
    fn allowed(rules: &[Rule], kind: Kind, access: u8, (major, minor): (u32, u32)) -> bool {
        let mut granted = 0;
        for rule in rules {
            let matches = rule.kind.is_none_or(|k| k == kind)
                && rule.major.is_none_or(|m| m == major)
                && rule.minor.is_none_or(|m| m == minor);
            match (matches, rule.allow) {
                (true, true) => granted |= rule.access,
                (true, false) => granted &= !rule.access,
                (false, _) => {}
            }
        }
        access & !granted == 0
    }

    fn check_all_accesses(rules: &[Rule]) {
        let program = compile(rules);
        for kind in [Kind::Block, Kind::Character] {
            for access in 1..=ALL {
                for major in [0, 1, 5, 10, 136, u32::MAX] {
                    for minor in [0, 3, 5, 229, u32::MAX] {
                        let word = u32::from(access) << 16 | kind as u32;
                        assert_eq!(
                            run(&program, word, major, minor) == 1,
                            allowed(rules, kind, access, (major, minor)),
                            "{kind:?} {access} {major}:{minor} by {rules:?}"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn docker_rules() {
        let specified: Vec<LinuxDeviceCgroup> = serde_json::from_value(serde_json::json!([
            {"allow": false, "access": "rwm"},
            {"allow": true, "type": "c", "major": 1, "minor": 5, "access": "rwm"},
            {"allow": false, "type": "c", "major": 10, "minor": 229, "access": "rwm"},
        ]))
        .unwrap();
        let rules = Rule::all(&specified).unwrap();
        check_all_accesses(&rules);
        assert!(allowed(&rules, Kind::Character, READ, (1, 3)));
        assert!(!allowed(&rules, Kind::Character, READ, (10, 229)));
        assert!(!allowed(&rules, Kind::Block, READ, (8, 0)));
        assert!(allowed(&rules, Kind::Block, MKNOD, (8, 0)));
    }

    #[test]
    fn random_rules_mean_what_the_specification_says() {
        // A linear congruential generator (Knuth's MMIX constants): the cases are the same in every run.
        let mut state = 1u64;
        let mut random = |below: u32| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            low(state >> 33) % below
        };
        for _ in 0..300 {
            let rules: Vec<Rule> = (0..random(8))
                .map(|_| Rule {
                    allow: random(2) == 0,
                    kind: [None, Some(Kind::Block), Some(Kind::Character)][random(3) as usize],
                    major: [None, Some(1), Some(10), Some(u32::MAX)][random(4) as usize],
                    minor: [None, Some(3), Some(229)][random(3) as usize],
                    access: 1 + u8::try_from(random(7)).unwrap(),
                })
                .collect();
            check_all_accesses(&rules);
        }
    }

    #[test]
    fn malformed_rules_are_refused() {
        let cases = [
            (
                serde_json::json!({"allow": true, "access": "rx"}),
                "access: 'x' is none of r, w and m",
            ),
            (
                serde_json::json!({"allow": true, "type": "p"}),
                "type: a FIFO is no device",
            ),
            (
                serde_json::json!({"allow": true, "major": -2}),
                "major: -2 is no device number",
            ),
        ];
        for (rule, expected) in cases {
            let rule: LinuxDeviceCgroup = serde_json::from_value(rule).unwrap();
            let message = Rule::all(&[rule]).unwrap_err().to_string();
            assert_eq!(message, format!("linux.resources.devices[0].{expected}"));
        }
    }
}
