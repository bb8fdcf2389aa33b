//! Loads an archive into a store and prints what came of it: `load ROOT ARCHIVE`. For measuring.
#![forbid(unsafe_code)]

use std::path::Path;
use std::time::Instant;

fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let (Some(root), Some(archive)) = (arguments.next(), arguments.next()) else {
        anyhow::bail!("usage: load ROOT ARCHIVE");
    };
    let store = rvm_images::Store::open(Path::new(&root))?;
    let start = Instant::now();
    let source = match archive.as_str() {
        "-" => rvm_images::Source::Stream(Box::new(std::io::stdin())),
        path => rvm_images::Source::Path(path.into()),
    };
    let loaded = store.load(source, &mut |_| {})?;
    println!("loaded in {:.3} s", start.elapsed().as_secs_f64());
    for image in loaded {
        println!("{} {}", image.id, image.references.join(" "));
        for layer in store.resolve(&image.id.to_string())?.layers {
            println!("{} {}", layer.bytes, layer.path.display());
        }
    }
    Ok(())
}
