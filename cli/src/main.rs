//! `rvm`: any container image in its own microVM, or as a container.

fn main() {}
