//! Reports that people keep, print and mail: one HTML file that needs no network, no script and no other file.
//!
//! A [`Page`] is filled from top to bottom. Whatever text goes in comes out as text: maud escapes it.

mod axis;
mod plot;
mod style;

pub use axis::Axis;
pub use plot::{Bars, Mark, Plot, Series};

use anyhow::{Context, Result};
use maud::{DOCTYPE, Markup, html};
use std::{fs, path::Path};

/// A page under way.
pub struct Page {
    title: String,
    blocks: Vec<Markup>,
}

/// Rows under named columns. The first column is text, the others are set to the right, as figures are.
#[derive(Debug, Clone, Default)]
pub struct Table {
    /// What it shows.
    pub caption: String,
    /// Names of the columns, units included.
    pub head: Vec<String>,
    /// As many cells as columns each.
    pub rows: Vec<Vec<String>>,
}

impl Table {
    /// A table without rows.
    pub fn new<'a>(caption: impl Into<String>, head: impl IntoIterator<Item = &'a str>) -> Table {
        Table {
            caption: caption.into(),
            head: head.into_iter().map(str::to_owned).collect(),
            rows: Vec::new(),
        }
    }

    /// Appends a row.
    pub fn row(&mut self, cells: impl IntoIterator<Item = impl Into<String>>) -> &mut Table {
        self.rows.push(cells.into_iter().map(Into::into).collect());
        self
    }
}

impl Page {
    /// An empty page.
    pub fn new(title: impl Into<String>) -> Page {
        Page {
            title: title.into(),
            blocks: Vec::new(),
        }
    }

    /// What the reader came for, in a sentence or two.
    pub fn lead(&mut self, text: &str) -> &mut Page {
        self.push(html! { p.lead { (text) } })
    }

    /// Begins a section.
    pub fn heading(&mut self, text: &str) -> &mut Page {
        self.push(html! { h2 { (text) } })
    }

    /// A paragraph.
    pub fn note(&mut self, text: &str) -> &mut Page {
        self.push(html! { p { (text) } })
    }

    /// A table.
    pub fn table(&mut self, table: &Table) -> &mut Page {
        self.push(html! {
            div.wide { table {
                @if !table.caption.is_empty() { caption { (table.caption) } }
                thead { tr { @for name in &table.head { th { (name) } } } }
                tbody { @for row in &table.rows { tr { @for cell in row { td { (cell) } } } } }
            } }
        })
    }

    /// Lines or points over two axes.
    pub fn plot(&mut self, plot: &Plot) -> &mut Page {
        self.push(plot.draw())
    }

    /// Bars in groups.
    pub fn bars(&mut self, bars: &Bars) -> &mut Page {
        self.push(bars.draw())
    }

    fn push(&mut self, block: Markup) -> &mut Page {
        self.blocks.push(block);
        self
    }

    /// The whole file.
    pub fn html(&self) -> String {
        let page = html! {
            (DOCTYPE)
            html lang="en" {
                head {
                    meta charset="utf-8";
                    meta name="viewport" content="width=device-width, initial-scale=1";
                    meta name="color-scheme" content="light dark";
                    title { (self.title) }
                    style { (maud::PreEscaped(style::CSS)) }
                }
                body { main {
                    h1 { (self.title) }
                    @for block in &self.blocks { (block) }
                    footer { "gossamer " (env!("CARGO_PKG_VERSION")) }
                } }
            }
        };
        page.into_string()
    }

    /// Writes the file; it has its name only once it is whole.
    pub fn write(&self, path: &Path) -> Result<()> {
        let mut incomplete = path.as_os_str().to_owned();
        incomplete.push(".incomplete");
        let incomplete = Path::new(&incomplete);
        fs::write(incomplete, self.html())
            .with_context(|| format!("write {}", incomplete.display()))?;
        fs::rename(incomplete, path).with_context(|| format!("rename to {}", path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_stays_text() {
        let evil = "<script>alert('&')</script>\"";
        let mut table = Table::new(evil, [evil]);
        table.row([evil]);
        let mut page = Page::new(evil);
        page.lead(evil).heading(evil).note(evil).table(&table);
        page.plot(&Plot {
            title: evil.into(),
            x: Axis::linear(evil),
            y: Axis::log(evil),
            series: vec![Series::line(evil, [(1.0, 2.0), (2.0, 3.0)])],
        });
        page.bars(&Bars {
            title: evil.into(),
            y: Axis::linear(evil),
            labels: vec![evil.into()],
            series: vec![(evil.into(), vec![1.0])],
        });
        let html = page.html();
        assert!(!html.contains("<script"));
        assert!(html.matches("&lt;script&gt;").count() > 10);
        // Nothing is fetched from anywhere.
        assert!(!html.contains("http") && !html.contains("src=") && !html.contains("@import"));
    }

    #[test]
    fn a_page_is_written_whole_or_not_at_all() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("report.html");
        Page::new("x").write(&path).unwrap();
        let names: Vec<_> = fs::read_dir(folder.path()).unwrap().collect();
        assert_eq!(names.len(), 1);
        assert!(fs::read_to_string(&path).unwrap().ends_with("</html>"));
        let error = Page::new("x").write(Path::new("/no/such/folder/r.html"));
        assert!(format!("{:#}", error.unwrap_err()).contains("/no/such/folder/r.html"));
    }
}
