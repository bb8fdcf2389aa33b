//! What can be typed about ports and about where a container may connect to.

use std::str::FromStr;

use clap::{ArgAction, Args as ClapArgs};
use rvm_engine::ports::{Bindings, Egress, Exposed, Port, Ports};

pub(super) const PORT_EXAMPLES: &str = "\
Examples:
  rvm run -d --name web -p 8080:80 nginx
  rvm port web             80/tcp -> 0.0.0.0:8080
  rvm port web 80          0.0.0.0:8080
  rvm port web 53/udp";

/// How a container is reached, and what it reaches.
#[derive(Debug, ClapArgs)]
pub(crate) struct Publishing {
    /// Publish a port on this machine, as 8080:80, 127.0.0.1:8080:80, [::1]:53:53/udp or 8000-8009:80; 80 alone takes a
    /// port that is free
    #[arg(short, long, value_name = "[[ADDRESS:]PORT:]PORT[/PROTOCOL]", action = ArgAction::Append)]
    pub(crate) publish: Vec<Bindings>,
    /// Publish all ports that the image and --expose name
    #[arg(short = 'P', long)]
    pub(crate) publish_all: bool,
    /// Name a port that others are to reach, as 80, 53/udp or 8000-8009
    #[arg(long, value_name = "PORT[-PORT][/PROTOCOL]", action = ArgAction::Append)]
    pub(crate) expose: Vec<Exposed>,
    /// Where the container may connect to outside of its networks: none, or allow=ITEM[,ITEM...] with addresses, networks such
    /// as 10.0.0.0/8, and names such as example.org and *.example.org [default: everywhere]
    #[arg(long, value_name = "none|allow=ITEM,...", action = ArgAction::Append)]
    pub(crate) egress: Vec<Egress>,
}

impl Publishing {
    pub(crate) fn ports(&self) -> Ports {
        let mut bindings = Vec::new();
        for binding in self.publish.iter().flat_map(|bindings| &bindings.0) {
            // What is said twice is said once.
            if !bindings.contains(binding) {
                bindings.push(*binding);
            }
        }
        Ports {
            bindings,
            exposed: self
                .expose
                .iter()
                .flat_map(|exposed| exposed.0.iter().copied())
                .collect(),
            all: self.publish_all,
        }
    }

    /// What all of them allow together.
    pub(crate) fn egress(&self) -> Option<Egress> {
        self.egress.iter().cloned().reduce(|mut one, other| {
            one.extend(other);
            one
        })
    }
}

#[derive(Debug, ClapArgs)]
pub(crate) struct PortList {
    /// Name or ID
    pub(crate) container: String,
    /// Show only where this port of the container is published
    #[arg(value_name = "PORT[/PROTOCOL]")]
    pub(crate) port: Option<Port>,
}

/// Ports of a filter, as Docker has them: of one protocol or, where none is named, of TCP.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PortFilter(pub(crate) Vec<Port>);

impl FromStr for PortFilter {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let exposed = text.parse::<Exposed>();
        exposed
            .map(|exposed| Self(exposed.0))
            .map_err(|_| format!("{text:?} is no port: it is written PORT[-PORT][/PROTOCOL]"))
    }
}
