//! Virtio 1.2 devices on the memory-mapped transport.
