//! What rvm sees and measures from inside of containers: the parts of `rvm-probe`, and what it prints.

#![forbid(unsafe_code)]

pub mod attempts;
pub mod crash;
pub mod facts;
pub mod network;
pub mod sample;

/// Prints one line of JSON.
///
/// # Errors
/// Where that cannot be written.
pub fn print(value: &impl serde::Serialize) -> anyhow::Result<()> {
    println!("{}", serde_json::to_string(value)?);
    Ok(())
}
