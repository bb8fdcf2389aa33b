//! Progress of long work: bars on a terminal, nothing elsewhere.

use std::collections::HashMap;

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use rvm_images::{FetchStep, Progress, SendStep};

use crate::args::ProgressMode;

const LAYER: &str = "{prefix:12}  [{bar:30}]  {bytes:>10} / {total_bytes:<10}  {binary_bytes_per_sec}";
const WORDS: &str = "{prefix:12}  {msg}";
const TOTAL: &str = "{prefix:12}  [{bar:30}]  {bytes:>10} / {total_bytes:<10}  {binary_bytes_per_sec}  {eta}";
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
            // A load asks no registry.
            Progress::WaitingForPull | Progress::Fetch { .. } | Progress::Send { .. } => {}
        }
    }

    pub(crate) fn finish(self) {
        if let Some(bar) = self.spool {
            bar.finish_and_clear();
        }
    }
}

/// Shows a pull or a push: on a terminal a bar for each layer and one for all, else a line for each step.
pub(crate) struct TransferProgress {
    mode: ProgressMode,
    bars: MultiProgress,
    layers: HashMap<usize, Layer>,
    total: Option<ProgressBar>,
}

/// A layer on its way.
struct Layer {
    bar: ProgressBar,
    done: u64,
    total: u64,
    /// What was last said of it.
    said: &'static str,
}

impl TransferProgress {
    pub(crate) fn new(mode: ProgressMode) -> Self {
        let mode = match mode {
            ProgressMode::Auto if !super::is_watched() => ProgressMode::Plain,
            mode => mode,
        };
        let bars = MultiProgress::new();
        if mode != ProgressMode::Auto {
            bars.set_draw_target(ProgressDrawTarget::hidden());
        }
        Self {
            mode,
            bars,
            layers: HashMap::new(),
            total: None,
        }
    }

    pub(crate) fn update(&mut self, event: Progress) {
        let (index, digest, step) = match event {
            Progress::Fetch {
                index, digest, step, ..
            } => (index, digest, fetching(step)),
            Progress::Send { index, digest, step } => (index, digest, sending(step)),
            Progress::WaitingForPull if self.mode != ProgressMode::None => {
                super::note("Waiting for another pull of this image");
                return;
            }
            _ => return,
        };
        let (bars, total) = (&self.bars, &self.total);
        let layer = self.layers.entry(index).or_insert_with(|| {
            let bar = ProgressBar::new(0).with_style(style(WORDS));
            let bar = match total {
                Some(total) => bars.insert_before(total, bar),
                None => bars.add(bar),
            };
            // Not before it is among the others: alone it would draw itself.
            bar.set_prefix(digest.short());
            Layer::new(bar)
        });
        let said = layer.update(step);
        if self.mode == ProgressMode::Plain && said != layer.said {
            super::note(&format!("{}: {said}", digest.short()));
        }
        layer.said = said;
        if self.mode == ProgressMode::Auto && self.layers.values().any(|layer| layer.total > 0) {
            let total = self.total.get_or_insert_with(|| {
                let bar = self.bars.add(ProgressBar::new(0).with_style(style(TOTAL)));
                bar.set_prefix("total");
                bar
            });
            total.set_length(self.layers.values().map(|layer| layer.total).sum());
            total.set_position(self.layers.values().map(|layer| layer.done).sum());
        }
    }

    /// Leaves what was shown on the terminal, without the total.
    pub(crate) fn finish(self) {
        for layer in self.layers.values().filter(|layer| !layer.bar.is_finished()) {
            layer.bar.abandon();
        }
        if let Some(total) = self.total {
            total.finish_and_clear();
        }
    }
}

impl Layer {
    fn new(bar: ProgressBar) -> Self {
        Self {
            bar,
            done: 0,
            total: 0,
            said: "",
        }
    }

    fn update(&mut self, step: Step) -> &'static str {
        match step {
            Step::Moving { words, done, total } => {
                if self.total == 0 {
                    self.bar.set_style(style(LAYER));
                    self.bar.set_length(total);
                }
                (self.done, self.total) = (done, total);
                self.bar.set_position(done);
                words
            }
            Step::Retrying => "Retrying",
            Step::Waiting => {
                self.bar.set_style(style(WORDS));
                self.bar.set_message("Waiting");
                "Waiting"
            }
            Step::Ended(words) => {
                self.done = self.total;
                self.bar.set_style(style(WORDS));
                self.bar.finish_with_message(words);
                words
            }
        }
    }
}

/// What happens to a layer, in either direction, in Docker's words.
#[derive(Clone, Copy)]
enum Step {
    Waiting,
    Moving {
        words: &'static str,
        done: u64,
        total: u64,
    },
    Retrying,
    Ended(&'static str),
}

fn fetching(step: FetchStep) -> Step {
    match step {
        FetchStep::Exists => Step::Ended("Already exists"),
        FetchStep::Waiting => Step::Waiting,
        FetchStep::Reading { done, total } => Step::Moving {
            words: "Pulling fs layer",
            done,
            total,
        },
        FetchStep::Retrying => Step::Retrying,
        FetchStep::Done => Step::Ended("Pull complete"),
    }
}

fn sending(step: SendStep) -> Step {
    match step {
        SendStep::Exists => Step::Ended("Layer already exists"),
        SendStep::Mounted => Step::Ended("Mounted from another repository"),
        SendStep::Sending { done, total } => Step::Moving {
            words: "Pushing",
            done,
            total,
        },
        SendStep::Retrying => Step::Retrying,
        SendStep::Done => Step::Ended("Pushed"),
    }
}

/// The templates above are constants, so they are as valid as the default is.
fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template)
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .progress_chars("=> ")
}
