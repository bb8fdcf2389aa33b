//! A virtual machine monitor for one KVM guest.
