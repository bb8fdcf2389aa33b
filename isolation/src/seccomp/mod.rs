//! From `linux.seccomp` of the OCI runtime specification to a classic BPF program for seccomp(2).
//!
//! Effects are those of runc with libseccomp, against which the profiles in use were written:
//! - A name that this architecture (or this crate's table) does not know is skipped.
//! - A rule whose action is the default action has no effect.
//! - A rule without conditions decides its system call alone; among several the first counts.
//! - Otherwise the first rule all of whose conditions hold decides. A rule with two conditions on the same argument is
//!   taken as one rule for each of its conditions.
//! - A system call newer than every one the profile names fails with `ENOSYS` where the default would be an error or
//!   death, so that programs fall back to what they did before it existed.
//! - A call through the interface of an architecture that the profile does not list kills the thread.

mod compiler;
mod numbers;
mod reach;

use std::collections::{BTreeMap, BTreeSet};

use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompFilterFlag, LinuxSeccompOperator,
    LinuxSyscall,
};
use serde::{Deserialize, Serialize};

use crate::plan::Error;
use numbers::{Interface, Numbers};
pub use reach::allowed_calls;

/// A compiled filter, ready to be installed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Filter {
    /// The instructions as `(code, jt, jf, k)` of `struct sock_filter`.
    program: Vec<(u16, u8, u8, u32)>,
    /// `SECCOMP_FILTER_FLAG_*`.
    flags: u64,
}

impl Filter {
    /// Compiles a profile.
    pub(crate) fn new(profile: &LinuxSeccomp) -> Result<Filter, Error> {
        if profile.listener_path().is_some() {
            let field = "linux.seccomp.listenerPath".into();
            return Err(Error::Unsupported {
                field,
                what: "a notification listener".into(),
            });
        }
        let policies = policies(profile)?;
        let program = compiler::compile(&policies).ok_or_else(|| Error::Unsupported {
            field: "linux.seccomp".into(),
            what: format!(
                "a filter of more than {} instructions",
                compiler::MAXIMUM_INSTRUCTIONS
            ),
        })?;
        let flags = profile
            .flags()
            .iter()
            .flatten()
            .fold(0, |flags, flag| flags | flag_bit(*flag));
        Ok(Filter { program, flags })
    }

    /// Installs the filter in this thread. Needs either `CAP_SYS_ADMIN` or no-new-privileges.
    pub(crate) fn install(&self) -> std::io::Result<()> {
        crate::sys::install_seccomp_filter(&self.instructions(), self.flags)
    }

    fn instructions(&self) -> Vec<libc::sock_filter> {
        let instruction = |&(code, jt, jf, k)| libc::sock_filter { code, jt, jf, k };
        self.program.iter().map(instruction).collect()
    }
}

/// `SECCOMP_FILTER_FLAG_*` of `linux/seccomp.h`.
fn flag_bit(flag: LinuxSeccompFilterFlag) -> u64 {
    match flag {
        // There is one thread only when the filter is installed.
        LinuxSeccompFilterFlag::SeccompFilterFlagTsync => 0,
        LinuxSeccompFilterFlag::SeccompFilterFlagLog => 1 << 1,
        LinuxSeccompFilterFlag::SeccompFilterFlagSpecAllow => 1 << 2,
        // Of use with a listener only, without which the kernel refuses it.
        LinuxSeccompFilterFlag::SeccompFilterFlagWaitKillableRecv => 0,
    }
}

/// Return value of a filter: `SECCOMP_RET_*` of `linux/seccomp.h` with its data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Action(u32);

impl Action {
    const KILL_THREAD: Action = Action(0);
    const NO_SUCH_CALL: Action = Action(0x0005_0000 | libc::ENOSYS.unsigned_abs());

    fn new(field: &str, action: LinuxSeccompAction, errno: Option<u32>) -> Result<Action, Error> {
        // The largest error number that the kernel returns, MAX_ERRNO of include/linux/err.h.
        let errno = match errno {
            Some(errno) if errno > 4095 => {
                return Err(Error::Invalid {
                    field: field.into(),
                    reason: format!("{errno} is no error number"),
                });
            }
            Some(errno) => errno,
            None => libc::EPERM.unsigned_abs(),
        };
        Ok(Action(match action {
            LinuxSeccompAction::ScmpActKill | LinuxSeccompAction::ScmpActKillThread => 0,
            LinuxSeccompAction::ScmpActKillProcess => 0x8000_0000,
            LinuxSeccompAction::ScmpActTrap => 0x0003_0000,
            LinuxSeccompAction::ScmpActErrno => 0x0005_0000 | errno,
            LinuxSeccompAction::ScmpActTrace => 0x7ff0_0000 | errno,
            LinuxSeccompAction::ScmpActLog => 0x7ffc_0000,
            LinuxSeccompAction::ScmpActAllow => 0x7fff_0000,
            LinuxSeccompAction::ScmpActNotify => {
                let what = "notification".into();
                return Err(Error::Unsupported {
                    field: field.into(),
                    what,
                });
            }
        }))
    }

    /// Whether the system call is executed.
    fn permits(self) -> bool {
        // The kernel orders the values as signed numbers: KILL_PROCESS has the sign bit.
        (0x7ff0_0000..0x8000_0000).contains(&self.0)
    }
}

/// A test of one argument, all of whose 64 bits count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Condition {
    /// 0 to 5.
    argument: u8,
    comparison: Comparison,
}

/// The argument stands at the left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Comparison {
    NotEqual(u64),
    Less(u64),
    LessOrEqual(u64),
    Equal(u64),
    GreaterOrEqual(u64),
    Greater(u64),
    MaskedEqual { mask: u64, value: u64 },
}

/// A rule of one system call: the action holds if all conditions do.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Rule {
    conditions: Vec<Condition>,
    action: Action,
}

/// What happens to one system call: the first rule that holds, else `otherwise`.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Verdict {
    rules: Vec<Rule>,
    otherwise: Action,
}

impl Verdict {
    fn always(action: Action) -> Verdict {
        Verdict {
            rules: Vec::new(),
            otherwise: action,
        }
    }
}

/// What happens to the system calls of one interface: verdicts by number, each valid up to the next. Number 0 is there.
type Policy = BTreeMap<u32, Verdict>;

/// The policies of all interfaces that the profile lists.
fn policies(profile: &LinuxSeccomp) -> Result<BTreeMap<Interface, Policy>, Error> {
    let default = Action::new(
        "linux.seccomp.defaultErrnoRet",
        profile.default_action(),
        profile.default_errno_ret(),
    )?;
    let mut calls = Vec::new();
    for (index, call) in profile.syscalls().iter().flatten().enumerate() {
        calls.push((call, rules(index, call)?));
    }
    let numbers = Numbers::new();
    let interfaces = interfaces(profile.architectures().as_deref().unwrap_or_default())?;
    Ok(interfaces
        .into_iter()
        .map(|interface| (interface, policy(interface, &numbers, default, &calls)))
        .collect())
}

/// The native interface is always among them, as with libseccomp.
fn interfaces(architectures: &[Arch]) -> Result<BTreeSet<Interface>, Error> {
    let mut interfaces = BTreeSet::from([Interface::X86_64]);
    for architecture in architectures {
        interfaces.insert(match architecture {
            Arch::ScmpArchNative | Arch::ScmpArchX86_64 => Interface::X86_64,
            Arch::ScmpArchX86 => Interface::X86,
            Arch::ScmpArchX32 => Interface::X32,
            // This kernel has no such interface, so there is nothing to filter.
            _ => continue,
        });
    }
    Ok(interfaces)
}

fn policy(
    interface: Interface,
    numbers: &Numbers,
    default: Action,
    calls: &[(&LinuxSyscall, Vec<Rule>)],
) -> Policy {
    let mut verdicts: BTreeMap<u32, Verdict> = BTreeMap::new();
    let mut newest = 0;
    for (call, rules) in calls {
        for number in call
            .names()
            .iter()
            .filter_map(|name| numbers.number(interface, name))
        {
            newest = newest.max(number);
            for rule in rules.iter().filter(|rule| rule.action != default) {
                add(
                    verdicts.entry(number).or_insert_with(|| Verdict::always(default)),
                    rule,
                    default,
                );
            }
        }
    }
    let beyond = match newest {
        0 => default,
        _ if default.permits() => default,
        _ => Action::NO_SUCH_CALL,
    };
    let mut policy = Policy::from([(0, Verdict::always(default))]);
    for (number, verdict) in verdicts {
        policy.insert(number, verdict);
        policy
            .entry(number + 1)
            .or_insert_with(|| Verdict::always(default));
    }
    if newest > 0 {
        policy.insert(newest + 1, Verdict::always(beyond));
    }
    policy
}

/// Adds a rule, unless an earlier one without conditions decides alone.
fn add(verdict: &mut Verdict, rule: &Rule, default: Action) {
    if verdict.otherwise != default {
        return;
    }
    if rule.conditions.is_empty() {
        *verdict = Verdict::always(rule.action);
    } else {
        verdict.rules.push(rule.clone());
    }
}

/// The rules of entry `index` of `linux.seccomp.syscalls`, valid for each of its names.
fn rules(index: usize, call: &LinuxSyscall) -> Result<Vec<Rule>, Error> {
    let action = Action::new(
        &format!("linux.seccomp.syscalls[{index}]"),
        call.action(),
        call.errno_ret(),
    )?;
    let arguments = call.args().as_deref().unwrap_or_default();
    let conditions = arguments
        .iter()
        .enumerate()
        .map(|(position, argument)| {
            condition(argument).map_err(|reason| Error::Invalid {
                field: format!("linux.seccomp.syscalls[{index}].args[{position}]"),
                reason,
            })
        })
        .collect::<Result<Vec<_>, _>>()?;
    let distinct: BTreeSet<u8> = conditions.iter().map(|condition| condition.argument).collect();
    if distinct.len() == conditions.len() {
        return Ok(vec![Rule { conditions, action }]);
    }
    Ok(conditions
        .into_iter()
        .map(|condition| Rule {
            conditions: vec![condition],
            action,
        })
        .collect())
}

fn condition(argument: &LinuxSeccompArg) -> Result<Condition, String> {
    let value = argument.value();
    let comparison = match argument.op() {
        LinuxSeccompOperator::ScmpCmpNe => Comparison::NotEqual(value),
        LinuxSeccompOperator::ScmpCmpLt => Comparison::Less(value),
        LinuxSeccompOperator::ScmpCmpLe => Comparison::LessOrEqual(value),
        LinuxSeccompOperator::ScmpCmpEq => Comparison::Equal(value),
        LinuxSeccompOperator::ScmpCmpGe => Comparison::GreaterOrEqual(value),
        LinuxSeccompOperator::ScmpCmpGt => Comparison::Greater(value),
        LinuxSeccompOperator::ScmpCmpMaskedEq => Comparison::MaskedEqual {
            mask: value,
            value: argument.value_two().unwrap_or(0),
        },
    };
    match u8::try_from(argument.index()) {
        Ok(argument @ 0..=5) => Ok(Condition { argument, comparison }),
        _ => Err(format!("there is no argument {}", argument.index())),
    }
}

#[cfg(test)]
mod tests;
