//! What a container's life goes by, from what was asked for and what its image says.

use std::collections::BTreeMap;

use rvm_images::Image;

use super::Request;
use crate::network::Networking;
use crate::record::Settings;
use crate::{health, ports, signals};

/// What the life of a new container goes by.
pub(super) fn settings(request: &Request, image: &Image) -> Settings {
    let config = image.config.config().clone().unwrap_or_default();
    let mut labels: BTreeMap<String, String> =
        config.labels().clone().unwrap_or_default().into_iter().collect();
    labels.extend(request.labels.clone());
    // An image's signal that is none is as good as no signal, as Docker has it.
    let image_signal = || signals::parse(config.stop_signal().as_deref()?);
    Settings {
        stdin_once: request.stdin_once,
        tty: request.options.terminal.is_some(),
        stop_signal: request.stop_signal.or_else(image_signal),
        stop_timeout: request.stop_timeout,
        labels,
        log: request.log,
        restart: request.restart,
        health: health::Check::new(image.healthcheck.as_ref(), &request.health),
        given: request.options.given.clone(),
        ports: ports::with_image(
            &request.ports,
            config.exposed_ports().as_deref().unwrap_or_default(),
        ),
        egress: request.egress.clone(),
        network: Networking::default(),
    }
}
