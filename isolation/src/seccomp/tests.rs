//! The compiled program against the rules themselves, for thousands of system calls.

use std::sync::LazyLock;

use super::compiler::{AND, JUMP, JUMP_EQUAL, JUMP_GREATER, JUMP_GREATER_OR_EQUAL, LOAD, RETURN};
use super::numbers::X32_BIT;
use super::*;
use oci_spec::runtime::LinuxSeccompArgBuilder;

/// One system call, as `struct seccomp_data` shows it to a filter.
#[derive(Clone, Copy, Debug)]
struct Call {
    architecture: u32,
    number: u32,
    arguments: [u64; 6],
}

/// The lower half of a word.
#[expect(clippy::cast_possible_truncation, reason = "this is what the kernel does")]
fn low(word: u64) -> u32 {
    word as u32
}

/// Runs the subset of classic BPF that the compiler makes.
fn run(program: &[(u16, u8, u8, u32)], call: Call) -> (u32, usize) {
    let word = |offset: u32| match offset {
        0 => call.number,
        4 => call.architecture,
        16..64 => {
            let argument = call.arguments[(offset as usize - 16) / 8];
            if offset.is_multiple_of(8) {
                low(argument)
            } else {
                low(argument >> 32)
            }
        }
        _ => panic!("load from {offset}"),
    };
    let mut accumulator = 0;
    let mut at = 0;
    for steps in 1.. {
        let (code, jt, jf, k) = program[at];
        at += 1;
        let jump = |taken| usize::from(if taken { jt } else { jf });
        match code {
            LOAD => accumulator = word(k),
            AND => accumulator &= k,
            JUMP => at += k as usize,
            JUMP_EQUAL => at += jump(accumulator == k),
            JUMP_GREATER => at += jump(accumulator > k),
            JUMP_GREATER_OR_EQUAL => at += jump(accumulator >= k),
            RETURN => return (k, steps),
            _ => panic!("code {code:#x}"),
        }
    }
    unreachable!()
}

fn holds(argument: &LinuxSeccompArg, call: Call) -> bool {
    let (actual, value) = (call.arguments[argument.index()], argument.value());
    match argument.op() {
        LinuxSeccompOperator::ScmpCmpNe => actual != value,
        LinuxSeccompOperator::ScmpCmpLt => actual < value,
        LinuxSeccompOperator::ScmpCmpLe => actual <= value,
        LinuxSeccompOperator::ScmpCmpEq => actual == value,
        LinuxSeccompOperator::ScmpCmpGe => actual >= value,
        LinuxSeccompOperator::ScmpCmpGt => actual > value,
        LinuxSeccompOperator::ScmpCmpMaskedEq => actual & value == argument.value_two().unwrap_or(0),
    }
}

/// From tables made once: the tests ask hundreds of thousands of times.
fn number(interface: Interface, name: &str) -> Option<u32> {
    static NUMBERS: LazyLock<Numbers> = LazyLock::new(Numbers::new);
    NUMBERS.number(interface, name)
}

/// Evaluates a profile by its rules, without any of the code under test but the number tables.
fn evaluate(profile: &LinuxSeccomp, call: Call) -> u32 {
    let listed = profile.architectures().clone().unwrap_or_default();
    let interface = match (call.architecture, call.number) {
        (0xc000_003e, ..X32_BIT) => Interface::X86_64,
        (0xc000_003e, _) if listed.contains(&Arch::ScmpArchX32) => Interface::X32,
        (0x4000_0003, _) if listed.contains(&Arch::ScmpArchX86) => Interface::X86,
        _ => return 0,
    };
    let default = profile.default_action().as_u32(profile.default_errno_ret());
    let (mut conditional, mut unconditional, mut newest) = (None, None, 0);
    for entry in profile.syscalls().iter().flatten() {
        let action = entry.action().as_u32(entry.errno_ret());
        let numbers: Vec<u32> = entry
            .names()
            .iter()
            .filter_map(|name| number(interface, name))
            .collect();
        newest = numbers.iter().copied().fold(newest, u32::max);
        if action == default || !numbers.contains(&call.number) {
            continue;
        }
        let arguments = entry.args().clone().unwrap_or_default();
        let indices: BTreeSet<usize> = arguments.iter().map(LinuxSeccompArg::index).collect();
        let mut results = arguments.iter().map(|argument| holds(argument, call));
        let matched = if indices.len() == arguments.len() {
            results.all(|held| held)
        } else {
            results.any(|held| held)
        };
        if arguments.is_empty() {
            unconditional.get_or_insert(action);
        } else if matched {
            conditional.get_or_insert(action);
        }
    }
    let permits = (0x7ff0_0000..0x8000_0000).contains(&default);
    let beyond = if call.number > newest && newest > 0 && !permits {
        0x0005_0026
    } else {
        default
    };
    unconditional.or(conditional).unwrap_or(beyond)
}

fn check(profile: &LinuxSeccomp, calls: impl IntoIterator<Item = Call>) -> usize {
    let filter = Filter::new(profile).unwrap();
    let longest = calls.into_iter().map(|call| {
        let (action, steps) = run(&filter.program, call);
        let expected = evaluate(profile, call);
        assert_eq!(
            action, expected,
            "{action:#x} instead of {expected:#x} for {call:x?} by {profile:?}"
        );
        // What it allows with these arguments it may allow.
        let is_native = call.architecture == Interface::X86_64.audit_architecture();
        if is_native && matches!(action, libc::SECCOMP_RET_ALLOW | libc::SECCOMP_RET_LOG) {
            assert!(super::reach::may_allow(&filter.instructions(), call.number));
        }
        steps
    });
    longest.max().unwrap_or(0)
}

/// A linear congruential generator (Knuth's MMIX constants): the cases are the same in every run.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        low(self.0 >> 33) as usize % limit
    }

    fn pick<T: Clone>(&mut self, items: &[T]) -> T {
        items[self.below(items.len())].clone()
    }
}

/// Around the edges of both halves.
const VALUES: [u64; 12] = [
    0,
    1,
    2,
    0x7fff_ffff,
    0xffff_fffe,
    0xffff_ffff,
    0x1_0000_0000,
    0x1_0000_0001,
    0x7e02_0000,
    0xffff_ffff_0000_0000,
    u64::MAX - 1,
    u64::MAX,
];

fn random_calls(random: &mut Random, count: usize) -> Vec<Call> {
    (0..count)
        .map(|_| {
            let base = random.pick(&[0, 0, 0, X32_BIT, X32_BIT + 500, u32::MAX - 600]);
            Call {
                architecture: random.pick(&[0xc000_003e, 0xc000_003e, 0x4000_0003, 0xc000_00b7]),
                number: base + u32::try_from(random.below(600)).unwrap(),
                arguments: std::array::from_fn(|_| random.pick(&VALUES)),
            }
        })
        .collect()
}

fn random_argument(random: &mut Random) -> LinuxSeccompArg {
    use LinuxSeccompOperator::*;
    let builder = LinuxSeccompArgBuilder::default()
        .index(random.below(6))
        .value(random.pick(&VALUES));
    let builder = builder.value_two(random.pick(&[0u64, 1, 0x1_0000_0000]));
    let operators = [
        ScmpCmpNe,
        ScmpCmpLt,
        ScmpCmpLe,
        ScmpCmpEq,
        ScmpCmpGe,
        ScmpCmpGt,
        ScmpCmpMaskedEq,
    ];
    builder.op(random.pick(&operators)).build().unwrap()
}

fn random_profile(random: &mut Random) -> LinuxSeccomp {
    use LinuxSeccompAction::*;
    let names = [
        "read",
        "write",
        "open",
        "clone",
        "socket",
        "personality",
        "execve",
        "mmap2",
        "nothing",
        "ioctl",
    ];
    let actions = [
        ScmpActAllow,
        ScmpActErrno,
        ScmpActKillProcess,
        ScmpActLog,
        ScmpActTrap,
        ScmpActKill,
    ];
    let syscalls = (0..random.below(12))
        .map(|_| {
            let mut syscall = LinuxSyscall::default();
            let arguments = random.below(4);
            syscall
                .set_names(
                    (0..=random.below(4))
                        .map(|_| random.pick(&names).to_owned())
                        .collect(),
                )
                .set_action(random.pick(&actions))
                .set_errno_ret(random.pick(&[None, Some(38)]))
                .set_args(Some((0..arguments).map(|_| random_argument(random)).collect()));
            syscall
        })
        .collect::<Vec<_>>();
    let mut profile = LinuxSeccomp::default();
    profile
        .set_default_action(random.pick(&actions))
        .set_architectures(random.pick(&[
            None,
            Some(vec![Arch::ScmpArchX86_64, Arch::ScmpArchX86, Arch::ScmpArchX32]),
            Some(vec![Arch::ScmpArchX86, Arch::ScmpArchAarch64]),
        ]))
        .set_syscalls(Some(syscalls));
    profile
}

#[test]
fn random_profiles_mean_what_their_rules_say() {
    let mut random = Random(7);
    for _ in 0..400 {
        let profile = random_profile(&mut random);
        let mut calls = random_calls(&mut random, 200);
        // Most of them should meet a rule.
        for call in calls.iter_mut().step_by(2) {
            let name = random.pick(&[
                "read",
                "clone",
                "socket",
                "personality",
                "execve",
                "mmap2",
                "ioctl",
            ]);
            let interface = random.pick(&[Interface::X86_64, Interface::X86, Interface::X32]);
            if let Some(number) = number(interface, name) {
                (call.architecture, call.number) = (interface.audit_architecture(), number);
            }
        }
        check(&profile, calls);
    }
}

/// Shaped as Docker's default: hundreds of allowed calls, a few with conditions, one with an error of its own.
fn large_profile() -> LinuxSeccomp {
    let mut names = Vec::new();
    for number in (0..450).filter(|number| number % 3 != 0) {
        names.extend(syscalls::x86_64::Sysno::new(number).map(|call| call.name()));
    }
    serde_json::from_value(serde_json::json!({
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": 1,
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
        "syscalls": [
            {"names": names, "action": "SCMP_ACT_ALLOW"},
            {"names": ["personality"], "action": "SCMP_ACT_ALLOW", "args": [{"index": 0, "value": 0, "op": "SCMP_CMP_EQ"}]},
            {"names": ["personality"], "action": "SCMP_ACT_ALLOW", "args": [{"index": 0, "value": 8, "op": "SCMP_CMP_EQ"}]},
            {"names": ["clone"], "action": "SCMP_ACT_ALLOW",
             "args": [{"index": 0, "value": 0x7e02_0000, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"}]},
            {"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38},
        ],
    }))
    .unwrap()
}

#[test]
fn a_large_profile_is_searched_in_logarithmic_time() {
    let profile = large_profile();
    let calls = [0xc000_003e, 0x4000_0003].into_iter().flat_map(|architecture| {
        (0..600).chain(X32_BIT..X32_BIT + 600).flat_map(move |number| {
            [0, 8, 0x7e02_0000, u64::MAX].map(|argument| Call {
                architecture,
                number,
                arguments: [argument; 6],
            })
        })
    });
    let longest = check(&profile, calls);
    assert!(longest < 40, "{longest} instructions for one call");
}

#[test]
fn profiles_that_cannot_be_honoured_are_refused() {
    let check = |changes: serde_json::Value, expected: &str| {
        let mut profile = serde_json::json!({"defaultAction": "SCMP_ACT_ERRNO"});
        profile
            .as_object_mut()
            .unwrap()
            .extend(changes.as_object().unwrap().clone());
        let profile: LinuxSeccomp = serde_json::from_value(profile).unwrap();
        assert_eq!(Filter::new(&profile).unwrap_err().to_string(), expected);
    };
    let call = |change: serde_json::Value| {
        let mut call = serde_json::json!({"names": ["read"], "action": "SCMP_ACT_ALLOW"});
        call.as_object_mut()
            .unwrap()
            .extend(change.as_object().unwrap().clone());
        serde_json::json!({"syscalls": [call]})
    };
    check(
        serde_json::json!({"listenerPath": "/x"}),
        "linux.seccomp.listenerPath: a notification listener is not supported",
    );
    check(
        serde_json::json!({"defaultErrnoRet": 5000}),
        "linux.seccomp.defaultErrnoRet: 5000 is no error number",
    );
    check(
        call(serde_json::json!({"action": "SCMP_ACT_NOTIFY"})),
        "linux.seccomp.syscalls[0]: notification is not supported",
    );
    check(
        call(serde_json::json!({"args": [{"index": 6, "value": 0, "op": "SCMP_CMP_EQ"}]})),
        "linux.seccomp.syscalls[0].args[0]: there is no argument 6",
    );
}

#[test]
fn a_profile_too_long_for_the_kernel_is_refused() {
    let argument = |value: u64| serde_json::json!([{"index": 0, "value": value, "op": "SCMP_CMP_EQ"}]);
    let call =
        |value| serde_json::json!({"names": ["read"], "action": "SCMP_ACT_ALLOW", "args": argument(value)});
    let profile = serde_json::json!({
        "defaultAction": "SCMP_ACT_ERRNO",
        "syscalls": (0..1000).map(call).collect::<Vec<_>>(),
    });
    let message = Filter::new(&serde_json::from_value(profile).unwrap())
        .unwrap_err()
        .to_string();
    assert_eq!(
        message,
        "linux.seccomp: a filter of more than 4096 instructions is not supported"
    );
}
