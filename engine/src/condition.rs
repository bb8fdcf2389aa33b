//! What the listings of containers and images and the stream of events have in common: conditions, written NAME=VALUE.

use std::collections::BTreeMap;

/// Takes a condition apart.
///
/// # Errors
/// For a person, where there is no `=`.
pub fn split(text: &str) -> Result<(&str, &str), String> {
    text.split_once('=')
        .ok_or_else(|| format!("{text:?} is no filter: it is written NAME=VALUE"))
}

/// That there is a label, or that it has this value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Label {
    name: String,
    value: Option<String>,
}

impl From<&str> for Label {
    /// From `NAME` or `NAME=VALUE`.
    fn from(text: &str) -> Self {
        match text.split_once('=') {
            Some((name, value)) => Self {
                name: name.to_owned(),
                value: Some(value.to_owned()),
            },
            None => Self {
                name: text.to_owned(),
                value: None,
            },
        }
    }
}

impl Label {
    /// Whether these labels have it.
    #[must_use]
    pub fn fits(&self, labels: &BTreeMap<String, String>) -> bool {
        match (labels.get(&self.name), &self.value) {
            (found, None) => found.is_some(),
            (found, value) => found == value.as_ref(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_there_or_have_a_value() {
        let labels = BTreeMap::from([("tier".to_owned(), "a=b".to_owned())]);
        let fits = |text: &str| Label::from(text).fits(&labels);
        assert!(fits("tier") && fits("tier=a=b"));
        assert!(!fits("tier=") && !fits("tier=a") && !fits("other") && !fits("other="));
        assert_eq!(split("label=tier=a"), Ok(("label", "tier=a")));
        assert!(split("label").is_err());
    }
}
