//! The network suite: the probe serves in a container on the default network, and this process is its client, across the bridge.
//!
//! Both ends count and sum what goes over a connection, and each tells the other: a run in which they do not agree is a failed
//! one. A host without a bridge, root or `nft` has no such run, and the suite says why.

use std::net::{IpAddr, SocketAddr};

use rvm_probe::network::{self as wire, Client, HTTP_CONNECTIONS, STREAM_BYTES};
use serde::Deserialize;

use super::plan::Subject;
use super::statistics::{median, percentile};
use super::{Bench, Error, Sample, number};
use crate::network::Networking;

/// What the probe says first.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Ready {
    work: String,
    port: u16,
}

/// Connections of which the time is taken.
const CONNECTIONS: usize = 100;

/// Round trips of which the time is taken.
const ROUND_TRIPS: usize = 1000;

/// One run.
pub(super) fn measure(bench: &mut Bench, subject: Subject) -> Result<Vec<Sample>, Error> {
    let mut probed = bench.probed(subject)?;
    probed.network = Networking::on_default();
    let mut session = probed.start(bench.engine, &["work", "network"])?;
    let ready: Ready = session.answer()?;
    if ready.work != "network" {
        return Err(Error::Wrong(format!(
            "it did {:?} and not network",
            crate::printable(&ready.work)
        )));
    }
    let memberships = bench.engine.memberships(session.id());
    let memberships = memberships.map_err(crate::engine::Error::from)?;
    let (_, endpoint) = memberships
        .first()
        .ok_or_else(|| Error::Wrong("it is on no network".to_owned()))?;
    let client = Client::new(SocketAddr::new(IpAddr::V4(endpoint.ipv4), ready.port));
    let samples = samples(&client).map_err(|error| {
        let error = crate::supervisor::chain(&error);
        Error::Wrong(format!("over the network {} {error}", endpoint.ipv4))
    })?;
    session.finish()?;
    Ok(samples)
}

fn samples(client: &Client) -> Result<Vec<Sample>, wire::Error> {
    // The first connection finds out hardware addresses.
    client.connect()?;
    let rate = |(bytes, ns): (u64, u64)| number(bytes) * 1e9 / number(ns);
    let (one, many) = ((1, STREAM_BYTES), (10, STREAM_BYTES / 10));
    let mut samples = vec![
        Sample::new("receive-1", rate(client.upload(one.0, one.1)?)),
        Sample::new("receive-10", rate(client.upload(many.0, many.1)?)),
        Sample::new("send-1", rate(client.download(one.0, one.1)?)),
        Sample::new("send-10", rate(client.download(many.0, many.1)?)),
    ];
    let trips: Vec<f64> = client.round_trips(ROUND_TRIPS)?.into_iter().map(number).collect();
    let told = |value: Option<f64>| value.unwrap_or_default();
    samples.push(Sample::new("round-trip", told(median(&trips))));
    samples.push(Sample::new("round-trip-p99", told(percentile(&trips, 0.99))));
    let connections = (0..CONNECTIONS)
        .map(|_| client.connect().map(number))
        .collect::<Result<Vec<_>, _>>()?;
    samples.push(Sample::new("connect", told(median(&connections))));
    let (requests, ns) = client.http(HTTP_CONNECTIONS)?;
    samples.push(Sample::new("http", rate((requests, ns))));
    Ok(samples)
}
