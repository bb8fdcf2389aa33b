//! What can be typed about removing what nothing uses.

use std::collections::BTreeMap;
use std::str::FromStr;

use clap::{ArgAction, Args as ClapArgs};
use rvm_engine::condition;

use super::images::Until;

pub(super) const SYSTEM_PRUNE_EXAMPLES: &str = "\
Examples:
  rvm system prune                          containers that have ended, unused networks, images without a name
  rvm system prune -af --volumes            images with names and volumes without one, too
  rvm system prune -f --filter until=24h    what is older than a day
  rvm system prune -f --filter label=tmp";

/// Which of the things that nothing uses are removed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum PruneFilter {
    Label(condition::Label),
    NotLabel(condition::Label),
    Until(Until),
}

impl FromStr for PruneFilter {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(label) = text.strip_prefix("label!=") {
            return Ok(Self::NotLabel(label.into()));
        }
        let (name, value) = condition::split(text)?;
        match name {
            "label" => Ok(Self::Label(value.into())),
            "until" => text.parse().map(Self::Until),
            _ => Err(format!("invalid filter '{text}'")),
        }
    }
}

impl PruneFilter {
    /// Whether all of them fit what has these labels and was made at this moment, in milliseconds since the epoch. What does not
    /// say when it was made is not known to be older.
    pub(crate) fn all_fit(
        filters: &[Self],
        labels: &BTreeMap<String, String>,
        created_ms: Option<u64>,
    ) -> bool {
        filters.iter().all(|filter| match filter {
            Self::Label(label) => label.fits(labels),
            Self::NotLabel(label) => !label.fits(labels),
            Self::Until(until) => created_ms.is_some_and(|created| created < until.0),
        })
    }
}

#[derive(Debug, ClapArgs)]
pub(crate) struct SystemPrune {
    /// Remove images with names too
    #[arg(short, long)]
    pub(crate) all: bool,
    /// Do not ask
    #[arg(short, long)]
    pub(crate) force: bool,
    /// Remove volumes without a name too
    #[arg(long)]
    pub(crate) volumes: bool,
    /// Remove only what fits: label=NAME[=VALUE], label!=NAME[=VALUE], until=TIME
    #[arg(long, value_name = "NAME=VALUE", action = ArgAction::Append)]
    pub(crate) filter: Vec<PruneFilter>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_pruned_fits_all_filters() {
        let labels = BTreeMap::from([("tier".to_owned(), "test".to_owned())]);
        let check = |filters: &[&str], created, expected| {
            let filters: Vec<PruneFilter> = filters.iter().map(|text| text.parse().unwrap()).collect();
            assert_eq!(
                PruneFilter::all_fit(&filters, &labels, created),
                expected,
                "{filters:?}"
            );
        };
        check(&[], None, true);
        check(&["label=tier"], None, true);
        check(&["label=tier=test", "label=other"], None, false);
        check(&["label!=tier"], None, false);
        check(&["label!=other"], None, true);
        check(&["until=2020-01-02"], Some(1_577_836_800_000), true);
        check(&["until=2020-01-02"], Some(1_678_000_000_000), false);
        check(&["until=2020-01-02"], None, false);
        assert!("name=x".parse::<PruneFilter>().is_err());
    }
}
