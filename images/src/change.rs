//! Changes of an image's configuration, written as Dockerfile instructions (`--change 'CMD ["sh"]'`).

use std::str::FromStr;

use serde_json::{Map, Value, json};

/// One instruction, understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    field: &'static str,
    edit: Edit,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Edit {
    /// Takes the place of the value.
    Set(Value),
    /// Keys of an object.
    Insert(Vec<(String, Value)>),
    /// `NAME=VALUE` in a list, in the place of one with the same name.
    Environment(Vec<(String, String)>),
    /// One more text of a list.
    Append(String),
}

/// Why a text is no change.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChangeError {
    /// Not one of the instructions that change a configuration.
    #[error(
        "{0:?} is no change: those are CMD, ENTRYPOINT, ENV, EXPOSE, LABEL, ONBUILD, STOPSIGNAL, USER, VOLUME and WORKDIR"
    )]
    Instruction(String),
    /// Nothing after the instruction.
    #[error("{0} needs a value")]
    Empty(String),
    /// Not `NAME=VALUE`.
    #[error("{0} needs NAME=VALUE, not {1:?}")]
    Pair(String, String),
    /// A quotation mark without its partner.
    #[error("{0:?} has a quotation mark that nothing closes")]
    Quote(String),
    /// A relative working directory.
    #[error("WORKDIR needs an absolute path, not {0:?}")]
    Directory(String),
    /// Not `[PORT][/PROTOCOL]`.
    #[error("{0:?} is no port: it is written NUMBER[-NUMBER][/tcp|/udp|/sctp]")]
    Port(String),
}

impl FromStr for Change {
    type Err = ChangeError;

    fn from_str(text: &str) -> Result<Self, ChangeError> {
        let text = text.trim();
        let (word, value) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
        let (name, value) = (word.to_ascii_uppercase(), value.trim());
        let whole = || Edit::Set(json!(value));
        let (field, edit) = match name.as_str() {
            "CMD" => ("Cmd", Edit::Set(json!(command(value)))),
            "ENTRYPOINT" => ("Entrypoint", Edit::Set(json!(command(value)))),
            "ENV" => ("Env", Edit::Environment(pairs(&name, value)?)),
            "LABEL" => {
                let labels = pairs(&name, value)?.into_iter();
                (
                    "Labels",
                    Edit::Insert(labels.map(|(key, value)| (key, json!(value))).collect()),
                )
            }
            "EXPOSE" => (
                "ExposedPorts",
                keys(value.split_whitespace().map(port).collect::<Result<_, _>>()?),
            ),
            "VOLUME" => ("Volumes", keys(list(value).map_or_else(|| words(value), Ok)?)),
            "ONBUILD" => ("OnBuild", Edit::Append(value.to_owned())),
            "STOPSIGNAL" => ("StopSignal", whole()),
            "USER" => ("User", whole()),
            "WORKDIR" if !value.is_empty() && !value.starts_with('/') => {
                return Err(ChangeError::Directory(value.to_owned()));
            }
            "WORKDIR" => ("WorkingDir", whole()),
            _ => return Err(ChangeError::Instruction(word.to_owned())),
        };
        if value.is_empty() {
            return Err(ChangeError::Empty(name));
        }
        Ok(Self { field, edit })
    }
}

impl Change {
    /// Changes the `config` object of a configuration.
    pub(crate) fn apply(&self, config: &mut Map<String, Value>) {
        let old = config.entry(self.field).or_insert(Value::Null);
        match &self.edit {
            Edit::Set(value) => *old = value.clone(),
            Edit::Insert(entries) => {
                let mut object = old.as_object().cloned().unwrap_or_default();
                object.extend(entries.iter().cloned());
                *old = object.into();
            }
            Edit::Environment(entries) => {
                let mut list = old.as_array().cloned().unwrap_or_default();
                for (name, value) in entries {
                    let prefix = format!("{name}=");
                    let same =
                        |item: &&mut Value| item.as_str().is_some_and(|text| text.starts_with(&prefix));
                    let new = json!(format!("{prefix}{value}"));
                    match list.iter_mut().find(same) {
                        Some(item) => *item = new,
                        None => list.push(new),
                    }
                }
                *old = list.into();
            }
            Edit::Append(text) => {
                let mut list = old.as_array().cloned().unwrap_or_default();
                list.push(json!(text));
                *old = list.into();
            }
        }
    }
}

/// A JSON list, or text for a shell.
fn command(value: &str) -> Vec<String> {
    list(value).unwrap_or_else(|| ["/bin/sh", "-c", value].map(str::to_owned).to_vec())
}

fn list(value: &str) -> Option<Vec<String>> {
    serde_json::from_str(value).ok()
}

fn keys(names: Vec<String>) -> Edit {
    Edit::Insert(names.into_iter().map(|name| (name, json!({}))).collect())
}

fn port(text: &str) -> Result<String, ChangeError> {
    let (numbers, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let (first, last) = numbers.split_once('-').unwrap_or((numbers, numbers));
    let is_good = match (first.parse::<u16>(), last.parse::<u16>()) {
        (Ok(first), Ok(last)) => 0 < first && first <= last,
        _ => false,
    };
    if !is_good || !matches!(protocol, "tcp" | "udp" | "sctp") {
        return Err(ChangeError::Port(text.to_owned()));
    }
    Ok(format!("{numbers}/{protocol}"))
}

/// `A=b C="d e"`, or `A b` as Docker has read it from the beginning.
fn pairs(name: &str, value: &str) -> Result<Vec<(String, String)>, ChangeError> {
    let words = words(value)?;
    let bad = |word: &str| ChangeError::Pair(name.to_owned(), word.to_owned());
    match words.first() {
        None => Err(ChangeError::Empty(name.to_owned())),
        Some(first) if !first.contains('=') => {
            let (key, rest) = value.split_once(char::is_whitespace).ok_or_else(|| bad(value))?;
            Ok(vec![(key.to_owned(), rest.trim_start().to_owned())])
        }
        Some(_) => words
            .iter()
            .map(|word| match word.split_once('=') {
                Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
                _ => Err(bad(word)),
            })
            .collect(),
    }
}

/// Words as a shell separates them: quotation marks and backslashes keep blanks.
fn words(text: &str) -> Result<Vec<String>, ChangeError> {
    let (mut words, mut word, mut quote) = (Vec::new(), None::<String>, None::<char>);
    let mut letters = text.chars();
    while let Some(letter) = letters.next() {
        match (letter, quote) {
            (mark, Some(open)) if mark == open => quote = None,
            ('"' | '\'', None) => {
                quote = Some(letter);
                word.get_or_insert_default();
            }
            ('\\', None | Some('"')) => word.get_or_insert_default().extend(letters.next()),
            (blank, None) if blank.is_whitespace() => words.extend(word.take()),
            (other, _) => word.get_or_insert_default().push(other),
        }
    }
    if quote.is_some() {
        return Err(ChangeError::Quote(text.to_owned()));
    }
    words.extend(word);
    Ok(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instructions_change_the_configuration() {
        let check = |changes: &[&str], expected: &Value| {
            let before = json!({"Env": ["A=b", "PATH=/bin"], "Cmd": ["sh"], "Labels": {"one": "1"}});
            let mut config = before.as_object().cloned().unwrap();
            for change in changes {
                change.parse::<Change>().unwrap().apply(&mut config);
            }
            for (key, value) in expected.as_object().unwrap() {
                assert_eq!(config.get(key), Some(value), "{changes:?}");
            }
        };
        check(&[r#"CMD ["a", "b c"]"#], &json!({"Cmd": ["a", "b c"]}));
        check(&["cmd echo  x"], &json!({"Cmd": ["/bin/sh", "-c", "echo  x"]}));
        check(&["ENTRYPOINT []"], &json!({"Entrypoint": []}));
        check(
            &[r#"ENV A=c B="d e" C=f\ g"#],
            &json!({"Env": ["A=c", "PATH=/bin", "B=d e", "C=f g"]}),
        );
        check(
            &["ENV A one two", "ENV PATHX=y"],
            &json!({"Env": ["A=one two", "PATH=/bin", "PATHX=y"]}),
        );
        check(
            &["LABEL two='2 3'"],
            &json!({"Labels": {"one": "1", "two": "2 3"}}),
        );
        check(
            &["EXPOSE 80 53/udp"],
            &json!({"ExposedPorts": {"80/tcp": {}, "53/udp": {}}}),
        );
        check(
            &["VOLUME /a", r#"VOLUME ["/b c"]"#],
            &json!({"Volumes": {"/a": {}, "/b c": {}}}),
        );
        check(
            &["USER www", "WORKDIR /srv", "STOPSIGNAL SIGINT", "ONBUILD RUN x"],
            &json!({"User": "www", "WorkingDir": "/srv", "StopSignal": "SIGINT", "OnBuild": ["RUN x"]}),
        );
    }

    #[test]
    fn others_are_refused() {
        for text in [
            "",
            "CMD",
            "RUN ls",
            "FROM x",
            "ENV A",
            "ENV A=b c",
            "ENV A='b",
            "WORKDIR srv",
            "EXPOSE x",
            "EXPOSE 0",
            "EXPOSE 1/x",
            "LABEL =x",
        ] {
            assert!(text.parse::<Change>().is_err(), "{text:?}");
        }
    }
}
