//! A container's ports: which are exposed, and which of the host's lead to them.

pub use rvm_network::endpoint::{Egress, Protocol, Published};
pub use rvm_network::publish::{Binding, Bindings, Exposed, Port, Ports};

use crate::network::{self, Mode};
use crate::record::Record;
use crate::{Engine, Error};

/// What was asked for with what the image exposes. Something else there than a port is none, as Docker has it.
pub(crate) fn with_image(asked: &Ports, image: &[String]) -> Ports {
    let mut ports = asked.clone();
    let exposed = image.iter().filter_map(|text| text.parse::<Exposed>().ok());
    ports.exposed.extend(exposed.flat_map(|exposed| exposed.0));
    ports
}

/// Whether ports and policy go with what the container is connected to.
pub(crate) fn check(ports: &Ports, egress: Option<&Egress>, mode: &Mode) -> Result<(), network::Error> {
    let conflict = |what| Err(network::Error::Conflict(what));
    match mode {
        Mode::Container(_) if !ports.bindings.is_empty() || ports.all => conflict("port publishing"),
        Mode::Container(_) if !ports.exposed.is_empty() => conflict("port exposing"),
        // Neither is an interface of its own, which the rules would be for.
        Mode::Container(_) | Mode::Host if egress.is_some() => conflict("egress policy"),
        _ => Ok(()),
    }
}

impl Engine {
    /// The host's ports that lead to a container at this moment, in the order of its own.
    ///
    /// # Errors
    /// [`Error::Network`].
    pub fn published(&self, record: &Record) -> Result<Vec<Published>, Error> {
        if !record.state.is_active() {
            return Ok(Vec::new());
        }
        let memberships = self.memberships(&record.id)?;
        let published = memberships
            .into_iter()
            .flat_map(|(_, endpoint)| endpoint.published);
        let mut published: Vec<_> = published.collect();
        published.sort_by_key(|published| (published.port(), *published));
        // Several networks may lead to it.
        published.dedup();
        Ok(published)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_images_ports_are_exposed_too() {
        let asked = Ports {
            exposed: "81".parse::<Exposed>().unwrap().0.into_iter().collect(),
            ..Ports::default()
        };
        let image = ["80/tcp", "53/udp", "7000-7001", "9/sctp", "x"].map(str::to_owned);
        let ports = with_image(&asked, &image);
        let exposed: Vec<_> = ports.exposed.iter().map(ToString::to_string).collect();
        assert_eq!(exposed, ["53/udp", "80/tcp", "81/tcp", "7000/tcp", "7001/tcp"]);
    }
}
