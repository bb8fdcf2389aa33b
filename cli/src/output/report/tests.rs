//! That a page is whole, needs nothing from elsewhere, and is not written by what it shows.

use rvm_engine::bench::catalogue::{Better, Unit};
use rvm_engine::bench::report::{ServingProcess, Waterfall};
use rvm_engine::bench::statistics::Summary;
use rvm_engine::bench::{Plan, Subject};
use rvm_engine::timeline::{Phase, Stamp};

use super::*;

const HOSTILE: &str = "</title><script>alert('1')</script>\u{1b}\"&";

fn series(suite: Suite, subject: Subject, samples: Vec<f64>) -> Series {
    Series {
        suite,
        row: HOSTILE.to_owned(),
        subject,
        title: HOSTILE.to_owned(),
        unit: Unit::Milliseconds,
        better: Better::Less,
        summary: Summary::of(&samples).unwrap(),
        samples,
    }
}

fn report() -> Report {
    let hostile = HOSTILE.to_owned();
    Report {
        version: 2,
        manifest: Manifest {
            began: hostile.clone(),
            ended: hostile.clone(),
            rvm: hostile.clone(),
            kernel: hostile.clone(),
            cpu: hostile.clone(),
            cpus: 2,
            flags: vec![hostile.clone()],
            kvm: Backend::Unusable {
                reason: hostile.clone(),
            },
            machine: Some(hostile.clone()),
            memory_bytes: None,
            governor: None,
            huge_pages: None,
            clock: None,
            cgroup2: Some(hostile.clone()),
            load: None,
            image: hostile.clone(),
            image_id: hostile.clone(),
            cache: hostile.clone(),
        },
        plan: Plan {
            image: hostile.clone(),
            suites: vec![Suite::Startup, Suite::Exposure],
            runs: 3,
            warm_up: 1,
            also: Vec::new(),
            pin: Some(hostile.clone()),
            instances: 10,
            cold: false,
            memory_bytes: 1 << 29,
        },
        series: vec![
            series(Suite::Startup, Subject::Vm, vec![1.0, 1000.0, 3.0]),
            series(Suite::Startup, Subject::Container, vec![0.5]),
            series(Suite::Exposure, Subject::Vm, vec![0.0, 0.0]),
        ],
        waterfalls: vec![Waterfall {
            subject: Subject::Vm,
            stamps: vec![
                Stamp {
                    phase: Phase::Command,
                    us: 10,
                },
                Stamp {
                    phase: Phase::Done,
                    us: 0,
                },
            ],
        }],
        exposures: vec![Exposure {
            subject: Subject::Vm,
            calls: [(hostile.clone(), 3)].into(),
            calls_missing: None,
            allowed: [hostile.clone()].into(),
            exits: [(hostile.clone(), 3)].into(),
            capabilities_inside: hostile.clone(),
            processes: vec![ServingProcess {
                name: hostile.clone(),
                uid: 0,
                capabilities: hostile.clone(),
                own_user_namespace: true,
                no_new_privileges: false,
                seccomp: hostile.clone(),
                allowed: None,
            }],
        }],
        failures: vec![rvm_engine::bench::report::Failure {
            suite: Suite::Startup,
            subject: Subject::Vm,
            run: 0,
            reason: hostile.clone(),
        }],
        notes: vec![hostile],
    }
}

#[test]
fn what_is_shown_does_not_write_the_page() {
    let page = Page(&report()).to_string();
    assert!(!page.contains("<script") && !page.contains('\u{1b}'), "{page}");
    assert!(page.contains("&lt;script&gt;alert(&#39;1&#39;)"));
    assert!(!page.contains("NaN") && !page.contains("inf"), "{page}");
}

#[test]
fn the_page_needs_nothing_from_elsewhere() {
    let page = Page(&report()).to_string();
    for reference in ["http:", "https:", "src=", "url(", "@import", "<link"] {
        assert!(!page.contains(reference), "{reference}");
    }
}

/// Each element ends, in the order of nesting.
#[test]
fn the_page_is_well_formed() {
    let page = Page(&report()).to_string();
    let mut open = Vec::new();
    for part in page.split('<').skip(2) {
        let tag = part.split('>').next().unwrap();
        let name = tag.split(' ').next().unwrap();
        match name.strip_prefix('/') {
            Some(name) => assert_eq!(open.pop(), Some(name), "{part}"),
            None if tag.ends_with('/') || name == "meta" => {}
            None => open.push(name),
        }
    }
    assert!(open.is_empty(), "{open:?}");
}
