//! `--format '{{.State.Pid}}'`: text with fields of a JSON document in it, as far as people use Go's templates for that.
//!
//! A field is `{{.A.B}}`, or `{{json .A.B}}` for its JSON. Text and numbers stand as they are, lists as their JSON. A field
//! that does not exist is an error, so that a mistyped name is not taken for an empty value.

use serde_json::Value;

use super::escaped;

/// A template that has been understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Template(Vec<Part>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Text(String),
    Field { path: Vec<String>, as_json: bool },
}

/// Why a template is not one, or does not fit.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Error {
    /// `{{` without `}}`.
    #[error("the template has {{{{ without }}}}")]
    Open,
    /// Something between the braces that is no field.
    #[error(
        "the template has {{{{{0}}}}}: only fields such as {{{{.State.Pid}}}} and {{{{json .Config}}}} are understood"
    )]
    Action(String),
    /// The document has no such field.
    #[error("there is no field {0}")]
    Field(String),
}

impl std::str::FromStr for Template {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let (mut parts, mut rest) = (Vec::new(), text);
        while let Some((before, after)) = rest.split_once("{{") {
            let (action, after) = after.split_once("}}").ok_or(Error::Open)?;
            if !before.is_empty() {
                parts.push(Part::Text(before.to_owned()));
            }
            parts.push(field(action.trim()).ok_or_else(|| Error::Action(action.to_owned()))?);
            rest = after;
        }
        if !rest.is_empty() {
            parts.push(Part::Text(rest.to_owned()));
        }
        Ok(Self(parts))
    }
}

fn field(action: &str) -> Option<Part> {
    let (as_json, path) = match action.strip_prefix("json ") {
        Some(path) => (true, path.trim()),
        None => (false, action),
    };
    let path = path.strip_prefix('.')?;
    let is_name =
        |name: &str| !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    let names: Vec<String> = match path {
        "" => Vec::new(),
        path => path.split('.').map(str::to_owned).collect(),
    };
    let is_path = names.iter().all(|name| is_name(name));
    is_path.then_some(Part::Field { path: names, as_json })
}

impl Template {
    /// Fills in the fields of a document.
    ///
    /// # Errors
    /// [`Error::Field`].
    pub(crate) fn fill(&self, document: &Value) -> Result<String, Error> {
        self.fill_from(document, document)
    }

    /// Fills in fields, and for `{{json .}}` a document that has other names for them.
    ///
    /// # Errors
    /// [`Error::Field`].
    pub(crate) fn fill_from(&self, fields: &Value, whole: &Value) -> Result<String, Error> {
        let mut text = String::new();
        for part in &self.0 {
            match part {
                Part::Text(part) => text.push_str(part),
                Part::Field { path, .. } if path.is_empty() => text.push_str(&escaped(&whole.to_string())),
                Part::Field { path, as_json } => match (find(fields, path)?, as_json) {
                    // A virtual machine or an image may have chosen it: control characters are not for the terminal.
                    (Value::String(value), false) => text.push_str(&rvm_engine::printable(value)),
                    (value, _) => text.push_str(&escaped(&value.to_string())),
                },
            }
        }
        Ok(text)
    }
}

impl Template {
    /// The names of fields that it has directly below a path.
    pub(crate) fn names_in<'a>(&'a self, path: &'a [&str]) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter_map(move |part| match part {
            Part::Field { path: names, .. } => match names.split_last() {
                Some((name, above)) if above == path => Some(name.as_str()),
                _ => None,
            },
            Part::Text(_) => None,
        })
    }

    /// Whether it shows a field of the document, by itself or as a part of all of it.
    pub(crate) fn shows(&self, name: &str) -> bool {
        self.0.iter().any(|part| match part {
            Part::Field { path, .. } => path.first().is_none_or(|first| first == name),
            Part::Text(_) => false,
        })
    }

    /// The text with a name for each field in its place.
    pub(crate) fn with_names(&self, name: impl Fn(&str) -> String) -> String {
        let part = |part: &Part| match part {
            Part::Text(text) => text.clone(),
            Part::Field { path, .. } => name(path.last().map_or("", String::as_str)),
        };
        self.0.iter().map(part).collect()
    }
}

fn find<'a>(document: &'a Value, path: &[String]) -> Result<&'a Value, Error> {
    path.iter().try_fold(document, |value, name| {
        let missing = || Error::Field(format!(".{}", path.join(".")));
        value.get(name).ok_or_else(missing)
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn fields_are_filled_in() {
        let document = json!({"Id": "ab", "State": {"Pid": 7, "Running": true}, "Args": ["a", "b"]});
        let check = |template: &str, expected: &str| {
            let filled = template
                .parse::<Template>()
                .and_then(|template| template.fill(&document));
            match filled {
                Ok(text) => assert_eq!(text, expected, "{template}"),
                Err(error) => assert!(error.to_string().contains(expected), "{template}: {error}"),
            }
        };
        check("", "");
        check("plain", "plain");
        check("{{.Id}}", "ab");
        check("{{ .State.Pid }} of {{.Id}}!", "7 of ab!");
        check("{{.State.Running}}", "true");
        check("{{json .Id}} {{json .State}}", r#""ab" {"Pid":7,"Running":true}"#);
        check("{{.Args}}", r#"["a","b"]"#);
        check("{{json .}}", &document.to_string());
        check("{{.State.Pdi}}", "no field .State.Pdi");
        check("{{.Id.X}}", "no field .Id.X");
        check("{{.Id", "without");
        check("{{range .Args}}", "{{range .Args}}");
        check("{{Id}}", "{{Id}}");
        check("{{..Id}}", "{{..Id}}");
    }
}
