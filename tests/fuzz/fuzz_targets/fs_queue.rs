//! See `rvm_vmm::fuzz`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| rvm_vmm::fuzz::run("fs_queue", data));
