//! See `rvm_images::fuzz`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| rvm_images::fuzz::run("image_documents", data));
