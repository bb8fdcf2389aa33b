//! Which events somebody wants to hear of.

use std::str::FromStr;

use super::Event;
use crate::condition;

/// Docker's kinds of things. Events of rvm are of containers, images and volumes.
const KINDS: [&str; 11] = [
    "builder",
    "config",
    "container",
    "daemon",
    "image",
    "network",
    "node",
    "plugin",
    "secret",
    "service",
    "volume",
];

/// What an event has to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Condition {
    /// Of this kind of thing.
    Kind(String),
    /// This action; `exec_create` also stands for `exec_create: ps`.
    Action(String),
    /// Of a container with this name, or an ID that begins so.
    Container(String),
    /// Of this image, or of a container of it: a name with or without its tag, or an ID.
    Image(String),
    /// Of this volume.
    Volume(String),
    /// Of something that has this label, or it with this value.
    Label(condition::Label),
}

impl FromStr for Condition {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, value) = condition::split(text)?;
        let value = value.to_owned();
        Ok(match name {
            "type" if KINDS.contains(&value.as_str()) => Self::Kind(value),
            "type" => return Err(format!("{value:?} is no type: there are {}", KINDS.join(", "))),
            "event" => Self::Action(value),
            "container" => Self::Container(value.trim_start_matches('/').to_owned()),
            "image" => Self::Image(value),
            "volume" => Self::Volume(value),
            "label" => Self::Label(value.as_str().into()),
            _ => {
                return Err(format!(
                    "there is no filter {name:?}: there are type, event, container, image, volume and label"
                ));
            }
        })
    }
}

impl Condition {
    fn fits(&self, event: &Event) -> bool {
        let attributes = &event.actor.attributes;
        let id = event.actor.id.as_str();
        match self {
            Self::Kind(kind) => event.kind == *kind,
            Self::Action(action) => {
                let short = event.action.split_once(": ").map_or("", |(short, _)| short);
                event.action == *action || short == action
            }
            Self::Container(wanted) => {
                let is_named = attributes.get("name") == Some(wanted);
                event.kind == "container"
                    && !wanted.is_empty()
                    && (is_named || id.starts_with(wanted.as_str()))
            }
            Self::Image(wanted) => {
                let (key, id) = match event.kind.as_str() {
                    "image" => ("name", id),
                    _ => ("image", ""),
                };
                let name = attributes.get(key).map_or("", String::as_str);
                let texts = [id, name, without_tag(id), without_tag(name)];
                texts.contains(&wanted.as_str())
            }
            Self::Volume(wanted) => event.kind == "volume" && id == wanted,
            Self::Label(label) => label.fits(attributes),
        }
    }

    /// Whether they are alternatives of each other. Labels are not, as everywhere else.
    fn is_like(&self, other: &Self) -> bool {
        !matches!(self, Self::Label(..)) && std::mem::discriminant(self) == std::mem::discriminant(other)
    }
}

/// `debian` of `debian:bookworm`, but not of a port.
fn without_tag(name: &str) -> &str {
    match name.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => name,
        _ => name,
    }
}

/// Conditions: of one kind any has to hold, of labels all, and of each kind that is there.
#[derive(Debug, Clone, Default)]
pub struct Filters(Vec<Condition>);

impl Filters {
    /// These conditions.
    #[must_use]
    pub fn new(conditions: Vec<Condition>) -> Self {
        Self(conditions)
    }

    /// Whether somebody wants to hear of it.
    #[must_use]
    pub fn fit(&self, event: &Event) -> bool {
        self.0.iter().all(|condition| {
            condition.fits(event)
                || self
                    .0
                    .iter()
                    .any(|other| condition.is_like(other) && other.fits(event))
        })
    }
}
