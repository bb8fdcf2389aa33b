//! Progress of long work: bars on a terminal, nothing elsewhere.

use std::collections::HashMap;

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use rvm_images::Progress;

const LAYER: &str = "{prefix:12}  [{bar:30}]  {bytes:>10} / {total_bytes:<10}  {binary_bytes_per_sec}";
const SPOOL: &str = "{prefix:12}  {spinner}  {bytes:>10}  {binary_bytes_per_sec}";

/// Shows a load, a line for each layer.
pub(crate) struct LoadProgress {
    bars: MultiProgress,
    layers: HashMap<usize, ProgressBar>,
    spool: Option<ProgressBar>,
}

impl LoadProgress {
    pub(crate) fn new(wanted: bool) -> Self {
        let bars = MultiProgress::new();
        if !wanted || !super::is_watched() {
            bars.set_draw_target(ProgressDrawTarget::hidden());
        }
        Self {
            bars,
            layers: HashMap::new(),
            spool: None,
        }
    }

    pub(crate) fn update(&mut self, event: Progress) {
        match event {
            Progress::Spooling { bytes } => {
                let bar = self.spool.get_or_insert_with(|| {
                    let bar = self.bars.add(ProgressBar::new_spinner().with_style(style(SPOOL)));
                    bar.set_prefix("receiving");
                    bar
                });
                bar.set_position(bytes);
            }
            Progress::Layer {
                index,
                diff_id,
                done,
                total,
                ..
            } => {
                let bar = self.layers.entry(index).or_insert_with(|| {
                    let bar = self.bars.add(ProgressBar::new(total).with_style(style(LAYER)));
                    bar.set_prefix(diff_id.short());
                    bar
                });
                bar.set_position(done);
                if done >= total {
                    bar.finish();
                }
            }
        }
    }

    pub(crate) fn finish(self) {
        if let Some(bar) = self.spool {
            bar.finish_and_clear();
        }
    }
}

/// The templates above are constants, so they are as valid as the default is.
fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template)
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .progress_chars("=> ")
}
