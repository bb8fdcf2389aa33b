//! What the rows claim, and a page on each, in two languages.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};
use rvm_engine::compare::ROWS;
use serde::Deserialize;

use crate::args::Language;

/// The texts, by row.
const TEXTS: &str = include_str!("pages.toml");

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Text {
    en: String,
    ko: String,
    page_en: String,
    page_ko: String,
}

/// The texts in one language.
pub(super) struct Pages {
    language: Language,
    texts: BTreeMap<String, Text>,
}

impl Pages {
    pub(super) fn read(language: Language) -> Result<Self> {
        Ok(Self {
            language,
            texts: toml::from_str(TEXTS).context("the texts of rvm compare are damaged")?,
        })
    }

    fn text(&self, row: &str) -> Result<&Text> {
        let rows = || format!("there is no row {row:?}: there are {}", ROWS.join(", "));
        self.texts.get(row).with_context(rows)
    }

    /// What a row claims.
    pub(super) fn claim(&self, row: &str) -> Result<&str> {
        let text = self.text(row)?;
        Ok(match self.language {
            Language::En => &text.en,
            Language::Ko => &text.ko,
        })
    }

    /// A page on a row.
    pub(super) fn page(&self, row: &str) -> Result<String> {
        let text = self.text(row)?;
        let page = match self.language {
            Language::En => &text.page_en,
            Language::Ko => &text.page_ko,
        };
        Ok(format!("{row}: {}\n\n{page}", self.claim(row)?))
    }

    pub(super) fn titles(&self) -> [&'static str; 4] {
        match self.language {
            Language::En => ["CLAIM", "VM", "CONTAINER", "READ FROM"],
            Language::Ko => ["주장", "VM", "컨테이너", "근거"],
        }
    }

    pub(super) fn footer(&self) -> &'static str {
        match self.language {
            Language::En => {
                "What was seen once, here, with this image. host-calls and reach are proxies and no verdict.\n\
                 `rvm compare --explain ROW` says how a row works; `rvm bench` measures."
            }
            Language::Ko => {
                "이 머신에서 이 이미지로 한 번 본 것이다. host-calls와 reach는 대리 지표이며 판정이 아니다.\n\
                 `rvm compare --lang ko --explain ROW`가 각 행을 설명하고, `rvm bench`가 측정한다."
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_has_its_texts_and_nothing_else_has() {
        for language in [Language::En, Language::Ko] {
            let pages = Pages::read(language).unwrap();
            assert_eq!(pages.texts.len(), ROWS.len());
            for row in ROWS {
                let page = pages.page(row).unwrap();
                assert!(page.starts_with(row) && page.lines().count() > 3, "{page}");
                // As wide as a terminal of 120 columns has it.
                assert!(page.lines().all(|line| line.len() <= 480), "{page}");
            }
            let error = pages.page("speed").unwrap_err().to_string();
            assert!(error.contains("kernel-settings"), "{error}");
        }
    }
}
