//! Says whether this machine's `/dev/kvm` can run ordinary guests, and why not.

use std::fs::File;
use std::time::Instant;

fn main() -> anyhow::Result<()> {
    let kvm = File::options().read(true).write(true).open("/dev/kvm")?;
    let start = Instant::now();
    let probe = rvm_vmm::probe::probe(&kvm)?;
    println!("{probe:#?}\nin {:?}", start.elapsed());
    Ok(())
}
