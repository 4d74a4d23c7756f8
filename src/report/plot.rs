//! Plots as SVG: lines, points and bars over readable axes.
//!
//! Colours are the page's, so a plot follows light, dark and paper. A value that has no place on an axis (0 on
//! a logarithmic one, anything not finite) is left out, and the plot says how many were.

use super::axis::{Axis, Scale, short};
use maud::{Markup, html};
use std::fmt::Write as _;

const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 300.0;
/// The area inside the axes.
const LEFT: f64 = 64.0;
const RIGHT: f64 = WIDTH - 16.0;
const TOP: f64 = 10.0;
const BOTTOM: f64 = HEIGHT - 46.0;
/// Colours that the style sheet has.
const COLOURS: usize = 7;
/// Points of a series that are worth a mark and a tooltip each.
const MOST_MARKS: usize = 200;

/// How a series is drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mark {
    /// Points joined in the order given.
    Line,
    /// Points alone.
    Points,
}

/// Named points.
#[derive(Debug, Clone)]
pub struct Series {
    /// As the legend names it.
    pub name: String,
    /// How it is drawn.
    pub mark: Mark,
    /// x and y.
    pub points: Vec<(f64, f64)>,
}

impl Series {
    /// Points joined in the order given.
    pub fn line(name: impl Into<String>, points: impl IntoIterator<Item = (f64, f64)>) -> Series {
        Series {
            name: name.into(),
            mark: Mark::Line,
            points: points.into_iter().collect(),
        }
    }

    /// Points alone.
    pub fn points(name: impl Into<String>, points: impl IntoIterator<Item = (f64, f64)>) -> Series {
        Series {
            mark: Mark::Points,
            ..Series::line(name, points)
        }
    }
}

/// Series over two axes.
#[derive(Debug, Clone)]
pub struct Plot {
    /// What it shows.
    pub title: String,
    /// To the right.
    pub x: Axis,
    /// Upwards.
    pub y: Axis,
    /// Up to seven differ in colour.
    pub series: Vec<Series>,
}

/// Bars in groups: one group a label, in it one bar a series.
#[derive(Debug, Clone)]
pub struct Bars {
    /// What it shows.
    pub title: String,
    /// Upwards.
    pub y: Axis,
    /// Names of the groups.
    pub labels: Vec<String>,
    /// Name, and a value for each label.
    pub series: Vec<(String, Vec<f64>)>,
}

impl Plot {
    pub(super) fn draw(&self) -> Markup {
        let all = || self.series.iter().flat_map(|s| s.points.iter().copied());
        let shown = |&(x, y): &(f64, f64)| self.x.has(x) && self.y.has(y);
        let (xs, ys) = (
            all().filter(shown).map(|p| p.0),
            all().filter(shown).map(|p| p.1),
        );
        let scales = self.x.scale(xs).zip(self.y.scale(ys));
        let names = self.series.iter().map(|s| s.name.as_str());
        let missing = all().filter(|p| !shown(p)).count();
        figure(
            &self.title,
            names,
            missing,
            html! {
                @if let Some((x, y)) = &scales {
                    (grid(y, &self.y))
                    @for &tick in &x.ticks {
                        @let at = across(x.place(tick));
                        line.grid x1=(at) x2=(at) y1=(BOTTOM) y2=(BOTTOM + 4.0) {}
                        text x=(at) y=(BOTTOM + 18.0) text-anchor="middle" { (short(tick)) }
                    }
                    (x_label(&self.x.label))
                    @for (i, series) in self.series.iter().enumerate() {
                        g class=(colour(i)) {
                            @if series.mark == Mark::Line { path.line d=(self.path(series, x, y)) {} }
                            @if series.mark == Mark::Points || series.points.len() <= MOST_MARKS {
                                @for p in series.points.iter().filter(|p| shown(p)) {
                                    circle.mark cx=(across(x.place(p.0))) cy=(up(y.place(p.1))) r="3" {
                                        title { (series.name) ": " (short(p.0)) ", " (short(p.1)) }
                                    }
                                }
                            }
                        }
                    }
                } @else { (nothing()) }
            },
        )
    }

    /// A line broken where values are missing.
    fn path(&self, series: &Series, x: &Scale, y: &Scale) -> String {
        let mut path = String::new();
        let mut step = 'M';
        for &(px, py) in &series.points {
            if !(self.x.has(px) && self.y.has(py)) {
                step = 'M';
                continue;
            }
            let _ = write!(path, "{step}{} {}", across(x.place(px)), up(y.place(py)));
            step = 'L';
        }
        path
    }
}

impl Bars {
    pub(super) fn draw(&self) -> Markup {
        let all = || {
            self.series
                .iter()
                .flat_map(|(_, values)| values.iter().copied())
        };
        let scale = self.y.scale(all());
        let names = self.series.iter().map(|(name, _)| name.as_str());
        let missing = all().filter(|&value| !self.y.has(value)).count();
        let group = (RIGHT - LEFT) / self.labels.len().max(1) as f64;
        let bar = (0.8 * group / self.series.len().max(1) as f64).min(60.0);
        figure(
            &self.title,
            names,
            missing,
            html! {
                @if let Some(y) = &scale {
                    (grid(y, &self.y))
                    @for (l, label) in self.labels.iter().enumerate() {
                        @let middle = LEFT + (l as f64 + 0.5) * group;
                        text x=(round(middle)) y=(BOTTOM + 18.0) text-anchor="middle" { (label) }
                        @for (s, (name, values)) in self.series.iter().enumerate() {
                            @if let Some(&value) = values.get(l).filter(|&&value| self.y.has(value)) {
                                @let left = middle + (s as f64 - 0.5 * self.series.len() as f64) * bar;
                                @let (a, b) = (y.place(value), y.base());
                                @let height = round((a - b).abs() * (BOTTOM - TOP));
                                g class=(colour(s)) {
                                    rect.mark x=(round(left + 1.0)) y=(up(a.max(b))) width=(round(bar - 2.0)) height=(height) {
                                        title { (label) ", " (name) ": " (short(value)) }
                                    }
                                    text x=(round(left + 0.5 * bar)) y=(round(up(a.max(b)) - 3.0)) text-anchor="middle" { (brief(value)) }
                                }
                            }
                        }
                    }
                } @else { (nothing()) }
            },
        )
    }
}

/// Title, legend and drawing.
fn figure<'a>(
    title: &str,
    names: impl Iterator<Item = &'a str>,
    missing: usize,
    drawing: Markup,
) -> Markup {
    html! {
        figure {
            figcaption { (title) }
            div.key {
                @for (i, name) in names.enumerate() { span { i class=(colour(i)) {} (name) } }
                @if missing > 0 { span { (missing) " values have no place on these axes (0, or not a number)" } }
            }
            svg viewBox=(format!("0 0 {WIDTH} {HEIGHT}")) role="img" aria-label=(title) { (drawing) }
        }
    }
}

/// Lines across at the ticks of y, and its label.
fn grid(y: &Scale, axis: &Axis) -> Markup {
    html! {
        @for &tick in &y.ticks {
            @let at = up(y.place(tick));
            line.grid x1=(LEFT) x2=(RIGHT) y1=(at) y2=(at) {}
            text x=(LEFT - 8.0) y=(at + 4.0) text-anchor="end" { (short(tick)) }
        }
        @let middle = 0.5 * (TOP + BOTTOM);
        text x="12" y=(middle) text-anchor="middle" transform=(format!("rotate(-90 12 {middle})")) { (axis.label) }
    }
}

fn x_label(label: &str) -> Markup {
    html! { text x=(0.5 * (LEFT + RIGHT)) y=(HEIGHT - 8.0) text-anchor="middle" { (label) } }
}

fn nothing() -> Markup {
    html! { text x=(0.5 * WIDTH) y=(0.5 * HEIGHT) text-anchor="middle" { "nothing to show" } }
}

fn across(place: f64) -> f64 {
    round(LEFT + place * (RIGHT - LEFT))
}

fn up(place: f64) -> f64 {
    round(BOTTOM - place * (BOTTOM - TOP))
}

/// A tenth of a unit is below what a screen shows.
fn round(at: f64) -> f64 {
    (10.0 * at).round() / 10.0
}

/// Three digits, for a bar's top.
fn brief(value: f64) -> String {
    if !(1e-3..1e4).contains(&value.abs()) {
        return short(value);
    }
    let digits = 2 - value.abs().log10().floor() as i32;
    format!("{value:.*}", digits.max(0) as usize)
}

fn colour(i: usize) -> String {
    format!("c{}", i % COLOURS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_break_where_values_are_missing() {
        let plot = Plot {
            title: "t".into(),
            x: Axis::linear("x"),
            y: Axis::log("y"),
            series: vec![Series::line(
                "s",
                [
                    (0.0, 1.0),
                    (1.0, 10.0),
                    (2.0, 0.0),
                    (3.0, f64::NAN),
                    (4.0, 100.0),
                ],
            )],
        };
        let svg = plot.draw().into_string();
        assert_eq!(svg.matches("<circle").count(), 3);
        let path = svg.split("d=\"").nth(1).and_then(|s| s.split('"').next());
        assert_eq!(path, Some("M64 254L234 132M744 10"));
        assert!(svg.contains("2 values have no place"), "{svg}");
    }

    #[test]
    fn an_empty_plot_says_so() {
        let plot = Plot {
            title: "t".into(),
            x: Axis::linear("x"),
            y: Axis::linear("y"),
            series: vec![Series::points("s", [])],
        };
        assert!(plot.draw().into_string().contains("nothing to show"));
        let bars = Bars {
            title: "t".into(),
            y: Axis::linear("y"),
            labels: vec![],
            series: vec![],
        };
        assert!(bars.draw().into_string().contains("nothing to show"));
    }

    #[test]
    fn bars_stand_on_zero() {
        let bars = Bars {
            title: "t".into(),
            y: Axis::linear("tok/s"),
            labels: vec!["a".into(), "b".into()],
            series: vec![("one".into(), vec![10.0, 5.0]), ("two".into(), vec![2.5])],
        };
        let svg = bars.draw().into_string();
        let heights: Vec<&str> = svg
            .split("height=\"")
            .skip(1)
            .filter_map(|s| s.split('"').next())
            .collect();
        assert_eq!(heights, ["244", "61", "122"]);
    }
}
