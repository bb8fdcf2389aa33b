//! What `--security-opt` says, as Docker's options and seccomp profiles.

use oci_spec::runtime::{
    Arch, Capabilities, Capability, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg,
    LinuxSeccompFilterFlag, LinuxSyscall,
};
use serde::Deserialize;

use super::{Error, seccomp};

/// The oldest kernel that can make a container of either kind: it has `mount_setattr`. What a profile asks of such kernels
/// is true of every one.
const OLDEST_KERNEL: (u32, u32) = (5, 12);

/// This machine's name in a profile.
const ARCHITECTURE: &str = "amd64";

/// What all options say together; the last of several counts.
#[derive(Debug, Default)]
pub(super) struct Security {
    /// Whether programs with more rights than their caller lose them.
    pub(super) no_new_privileges: bool,
    /// Whether nothing of /proc and /sys is hidden or made read-only.
    pub(super) opens_system_paths: bool,
    seccomp: Seccomp,
}

#[derive(Debug, Default)]
enum Seccomp {
    #[default]
    Default,
    Unconfined,
    Profile(Profile),
}

impl Security {
    /// Reads the options. A seccomp profile is there as its content, not as its file's name.
    ///
    /// # Errors
    /// [`Error::SecurityOption`], [`Error::SeccompProfile`].
    pub(super) fn new(options: &[String]) -> Result<Self, Error> {
        let mut security = Self::default();
        for option in options {
            let unknown = || Error::SecurityOption(option.clone());
            let (name, value) = option
                .split_once('=')
                .or_else(|| option.split_once(':'))
                .unwrap_or((option, ""));
            match (name, value) {
                ("no-new-privileges", "" | "true") => security.no_new_privileges = true,
                ("no-new-privileges", "false") => security.no_new_privileges = false,
                ("systempaths", "unconfined") => security.opens_system_paths = true,
                ("seccomp", "unconfined") => security.seccomp = Seccomp::Unconfined,
                ("seccomp", "builtin") => security.seccomp = Seccomp::Default,
                ("seccomp", profile) => {
                    let profile = serde_json::from_str(profile).map_err(Error::SeccompProfile)?;
                    security.seccomp = Seccomp::Profile(profile);
                }
                // No process is given a label or an AppArmor profile anyway.
                ("label", "disable") | ("apparmor", "unconfined") => {}
                _ => return Err(unknown()),
            }
        }
        Ok(security)
    }

    /// The filter of a container whose bounding set this is; `None` for none.
    ///
    /// # Errors
    /// What a profile says that cannot be kept.
    pub(super) fn filter(self, capabilities: &Capabilities) -> Result<Option<LinuxSeccomp>, Error> {
        match self.seccomp {
            Seccomp::Default => Ok(Some(seccomp::default_profile(capabilities)?)),
            Seccomp::Unconfined => Ok(None),
            Seccomp::Profile(profile) => profile.filter(capabilities).map(Some),
        }
    }
}

/// Docker's form of a profile: the specification's, with conditions (moby, profiles/seccomp/seccomp.go).
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Profile {
    default_action: LinuxSeccompAction,
    default_errno_ret: Option<u32>,
    #[serde(default)]
    architectures: Vec<Arch>,
    #[serde(default)]
    arch_map: Vec<Architecture>,
    #[serde(default)]
    flags: Vec<LinuxSeccompFilterFlag>,
    listener_path: Option<String>,
    #[serde(default)]
    syscalls: Vec<Rule>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Architecture {
    architecture: Arch,
    #[serde(default)]
    sub_architectures: Option<Vec<Arch>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Rule {
    #[serde(default)]
    name: String,
    #[serde(default)]
    names: Vec<String>,
    action: LinuxSeccompAction,
    errno_ret: Option<u32>,
    #[serde(default)]
    args: Option<Vec<LinuxSeccompArg>>,
    #[serde(default)]
    includes: Condition,
    #[serde(default)]
    excludes: Condition,
}

/// Of a rule: holds if the machine and the container are like this.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Condition {
    caps: Vec<String>,
    arches: Vec<String>,
    min_kernel: Option<String>,
}

impl Profile {
    fn filter(self, capabilities: &Capabilities) -> Result<LinuxSeccomp, Error> {
        if self.listener_path.is_some_and(|path| !path.is_empty()) {
            return Err(Error::Seccomp("listenerPath is not supported".to_owned()));
        }
        if !self.architectures.is_empty() && !self.arch_map.is_empty() {
            let both =
                "both 'architectures' and 'archMap' are specified in the seccomp profile, use either one";
            return Err(Error::Seccomp(both.to_owned()));
        }
        let mut architectures = self.architectures;
        for entry in self.arch_map {
            if entry.architecture == Arch::ScmpArchX86_64 {
                architectures.push(entry.architecture);
                architectures.extend(entry.sub_architectures.unwrap_or_default());
            }
        }
        let mut syscalls = Vec::new();
        for rule in self.syscalls {
            if rule.applies(capabilities)? {
                syscalls.push(rule.syscall()?);
            }
        }
        let mut filter = LinuxSeccomp::default();
        filter
            .set_default_action(self.default_action)
            .set_default_errno_ret(self.default_errno_ret)
            .set_architectures(Some(architectures))
            .set_flags((!self.flags.is_empty()).then_some(self.flags))
            .set_syscalls(Some(syscalls));
        Ok(filter)
    }
}

impl Rule {
    fn applies(&self, held: &Capabilities) -> Result<bool, Error> {
        let here = |arches: &[String]| arches.iter().any(|arch| arch == ARCHITECTURE);
        let capability = |name: &String| name.trim_start_matches("CAP_").parse::<Capability>();
        let holds = |name: &String| capability(name).is_ok_and(|capability| held.contains(&capability));
        let Self {
            includes, excludes, ..
        } = self;
        if here(&excludes.arches) || excludes.caps.iter().any(holds) || excludes.kernel()?.is_some() {
            return Ok(false);
        }
        includes.kernel()?;
        Ok((includes.arches.is_empty() || here(&includes.arches)) && includes.caps.iter().all(holds))
    }

    fn syscall(self) -> Result<LinuxSyscall, Error> {
        let names = match (self.name.is_empty(), self.names.is_empty()) {
            (false, false) => {
                let both = "both 'name' and 'names' are specified in the seccomp profile, use either one";
                return Err(Error::Seccomp(both.to_owned()));
            }
            (false, true) => vec![self.name],
            _ => self.names,
        };
        let mut syscall = LinuxSyscall::default();
        syscall
            .set_names(names)
            .set_action(self.action)
            .set_errno_ret(self.errno_ret)
            .set_args(self.args.filter(|args| !args.is_empty()));
        Ok(syscall)
    }
}

impl Condition {
    /// The kernel that it asks for, which every one that runs a container is newer than.
    fn kernel(&self) -> Result<Option<(u32, u32)>, Error> {
        let Some(text) = &self.min_kernel else {
            return Ok(None);
        };
        let number = |part: &str| part.parse().ok();
        let version = text
            .split_once('.')
            .and_then(|(major, minor)| Some((number(major)?, number(minor)?)))
            .ok_or_else(|| Error::Seccomp(format!("invalid minKernel {text:?}")))?;
        if version > OLDEST_KERNEL {
            let (major, minor) = OLDEST_KERNEL;
            let reason = format!(
                "minKernel {text} is not supported: it would differ between kernels, use {major}.{minor} at most"
            );
            return Err(Error::Seccomp(reason));
        }
        Ok(Some(version))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::spec::capabilities;

    fn filter(options: &[&str], held: &Capabilities) -> Result<Option<Value>, String> {
        let options: Vec<_> = options.iter().map(|&option| option.to_owned()).collect();
        let made = Security::new(&options).and_then(|security| security.filter(held));
        made.map(|filter| filter.map(|filter| serde_json::to_value(filter).unwrap()))
            .map_err(|error| error.to_string())
    }

    #[test]
    fn options_are_docker_s() {
        for (options, privileges, filtered) in [
            (&[][..], false, Ok(true)),
            (&["no-new-privileges"], true, Ok(true)),
            (&["no-new-privileges:true"], true, Ok(true)),
            (
                &["no-new-privileges=true", "no-new-privileges:false"],
                false,
                Ok(true),
            ),
            (&["seccomp=unconfined"], false, Ok(false)),
            (&["seccomp:unconfined", "seccomp=builtin"], false, Ok(true)),
            (&["label=disable", "apparmor=unconfined"], false, Ok(true)),
            (&["systempaths=unconfined"], false, Ok(true)),
            (&["systempaths=confined"], false, Err("invalid --security-opt")),
            (
                &["no-new-privileges:maybe"],
                false,
                Err("invalid --security-opt: \"no-new-privileges:maybe\""),
            ),
            (&["label=type:svirt_t"], false, Err("invalid --security-opt")),
            (&["apparmor=mine"], false, Err("invalid --security-opt")),
            (&["seccomp=x"], false, Err("Decoding seccomp profile failed")),
            (&["seccomp"], false, Err("Decoding seccomp profile failed")),
            (&["proc-opts=x"], false, Err("invalid --security-opt")),
        ] {
            let actual = filter(options, &capabilities::default_set());
            match (actual, filtered) {
                (Ok(filter), Ok(filtered)) => assert_eq!(filter.is_some(), filtered, "{options:?}"),
                (Err(error), Err(part)) => {
                    assert!(error.contains(part), "{options:?}: {error}");
                    continue;
                }
                (actual, _) => panic!("{options:?}: {actual:?}"),
            }
            let options: Vec<_> = options.iter().map(|&option| option.to_owned()).collect();
            assert_eq!(Security::new(&options).unwrap().no_new_privileges, privileges);
        }
    }

    #[test]
    fn profiles_become_filters() {
        let rule = |name: &str, includes: Value, excludes: Value| json!({"names": [name], "action": "SCMP_ACT_ALLOW", "args": [], "comment": "", "includes": includes, "excludes": excludes});
        let profile = json!({
            "defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 1,
            "archMap": [
                {"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86"]},
                {"architecture": "SCMP_ARCH_AARCH64", "subArchitectures": null},
            ],
            "syscalls": [
                rule("always", json!({}), json!({})),
                rule("admin", json!({"caps": ["CAP_SYS_ADMIN"]}), json!({})),
                rule("no-admin", json!({}), json!({"caps": ["CAP_SYS_ADMIN"]})),
                rule("here", json!({"arches": ["amd64", "x32"]}), json!({})),
                rule("elsewhere", json!({"arches": ["s390"]}), json!({})),
                rule("not-here", json!({}), json!({"arches": ["amd64"]})),
                rule("new", json!({"minKernel": "4.8"}), json!({})),
                {"name": "old", "action": "SCMP_ACT_ERRNO", "errnoRet": 38, "args": [
                    {"index": 0, "value": 1, "valueTwo": 0, "op": "SCMP_CMP_EQ"}
                ]},
            ],
        });
        let option = format!("seccomp={profile}");
        let names = |held: &Capabilities| -> Vec<String> {
            let filter = filter(&[&option], held).unwrap().unwrap();
            assert_eq!(
                filter["architectures"],
                json!(["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"])
            );
            let rules = filter["syscalls"].as_array().unwrap();
            assert_eq!(rules.last().unwrap()["errnoRet"], 38);
            rules
                .iter()
                .map(|rule| rule["names"][0].as_str().unwrap().to_owned())
                .collect()
        };
        assert_eq!(
            names(&capabilities::default_set()),
            ["always", "no-admin", "here", "new", "old"]
        );
        let admin = Capabilities::from([Capability::SysAdmin]);
        assert_eq!(names(&admin), ["always", "admin", "here", "new", "old"]);
    }

    #[test]
    fn what_a_profile_cannot_say_is_refused() {
        let syscall = |rule: Value| json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule]});
        let rule = |more: Value| {
            let mut rule = json!({"names": ["read"], "action": "SCMP_ACT_LOG"});
            rule.as_object_mut()
                .unwrap()
                .extend(more.as_object().unwrap().clone());
            syscall(rule)
        };
        for (profile, expected) in [
            (json!({}), "Decoding"),
            (json!({"defaultAction": "SCMP_ACT_MAYBE"}), "Decoding"),
            (json!([]), "Decoding"),
            (
                json!({"defaultAction": "SCMP_ACT_ALLOW", "listenerPath": "/x"}),
                "listenerPath",
            ),
            (
                json!({"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86"],
                    "archMap": [{"architecture": "SCMP_ARCH_X86_64"}]}),
                "both 'architectures'",
            ),
            (rule(json!({"name": "write"})), "both 'name'"),
            (
                rule(json!({"includes": {"minKernel": "6.9"}})),
                "minKernel 6.9 is not supported",
            ),
            (rule(json!({"excludes": {"minKernel": "x"}})), "invalid minKernel"),
        ] {
            let error = filter(&[&format!("seccomp={profile}")], &Capabilities::new()).unwrap_err();
            assert!(error.contains(expected), "{profile}: {error}");
        }
    }
}
