//! See `rvm_network::fuzz`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| rvm_network::fuzz::run("resolver_message", data));
