//! See `rvm_network::fuzz`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| rvm_network::fuzz::run("netlink_answer", data));
