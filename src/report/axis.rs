//! One axis of a plot: from values to places, and the ticks that people read.

/// What is measured along an axis, and on which scale.
#[derive(Debug, Clone)]
pub struct Axis {
    pub(super) label: String,
    pub(super) log: bool,
}

impl Axis {
    /// Equal steps for equal differences; from 0 on, unless values are below.
    pub fn linear(label: impl Into<String>) -> Axis {
        Axis {
            label: label.into(),
            log: false,
        }
    }

    /// Equal steps for equal ratios. Values of 0 and less have no place on it.
    pub fn log(label: impl Into<String>) -> Axis {
        Axis {
            label: label.into(),
            log: true,
        }
    }

    /// Whether `value` has a place on it.
    pub(super) fn has(&self, value: f64) -> bool {
        value.is_finite() && (!self.log || value > 0.0)
    }

    /// A scale from the least to the greatest of `values`, those that have no place left out.
    pub(super) fn scale(&self, values: impl Iterator<Item = f64>) -> Option<Scale> {
        let (mut low, mut high) = (f64::INFINITY, f64::NEG_INFINITY);
        for value in values.filter(|&value| self.has(value)) {
            (low, high) = (low.min(value), high.max(value));
        }
        if low > high {
            return None;
        }
        Some(match self.log {
            true => Scale::log(low, high),
            false => Scale::linear(low, high),
        })
    }
}

/// Limits and ticks, ascending.
#[derive(Debug)]
pub(super) struct Scale {
    low: f64,
    high: f64,
    log: bool,
    pub ticks: Vec<f64>,
}

impl Scale {
    fn linear(low: f64, high: f64) -> Scale {
        let (low, mut high) = (low.min(0.0), high.max(0.0));
        if low == high {
            high = 1.0;
        }
        let step = nice_step((high - low) / 5.0);
        let (first, last) = ((low / step).floor(), (high / step).ceil());
        let ticks: Vec<f64> = (0..=(last - first) as usize)
            .map(|i| (first + i as f64) * step)
            .collect();
        Scale {
            low: first * step,
            high: last * step,
            log: false,
            ticks,
        }
    }

    fn log(low: f64, high: f64) -> Scale {
        let (first, last) = (low.log10().floor() as i32, high.log10().ceil() as i32);
        let decades = (last - first).max(1);
        let ticks: Vec<f64> = if decades > 3 {
            // Every decade, or every n-th of many.
            let every = (decades as usize).div_ceil(8);
            (first..=last)
                .step_by(every)
                .map(|e| 10f64.powi(e))
                .collect()
        } else {
            let of_decade = |e: i32| [1.0, 2.0, 5.0].map(|m| m * 10f64.powi(e));
            (first..=last).flat_map(of_decade).collect()
        };
        // The ticks just outside, or the values where there is none.
        let below = |t: &&f64| **t <= low * (1.0 + 1e-9);
        let above = |t: &&f64| **t >= high * (1.0 - 1e-9);
        let from = ticks.iter().rfind(below).copied().unwrap_or(low);
        let mut to = ticks.iter().find(above).copied().unwrap_or(high);
        if from == to {
            to = from * 10.0;
        }
        let ticks = ticks.into_iter().filter(|&t| from <= t && t <= to);
        Scale {
            low: from,
            high: to,
            log: true,
            ticks: ticks.collect(),
        }
    }

    /// Where `value` lies: 0 at the low end, 1 at the high one.
    pub fn place(&self, value: f64) -> f64 {
        match self.log {
            true => (value.ln() - self.low.ln()) / (self.high.ln() - self.low.ln()),
            false => (value - self.low) / (self.high - self.low),
        }
    }

    /// Where a bar stands: at 0, or at the low end where there is no 0.
    pub fn base(&self) -> f64 {
        match self.log {
            true => 0.0,
            false => self.place(0.0),
        }
    }
}

/// 1, 2 or 5 times a power of ten, `least` or a little more.
fn nice_step(least: f64) -> f64 {
    let power = 10f64.powf(least.log10().floor());
    let steps = [1.0, 2.0, 5.0, 10.0].map(|m| m * power);
    steps
        .into_iter()
        .find(|&step| step >= least * (1.0 - 1e-9))
        .unwrap_or(10.0 * power)
}

/// A figure short enough for a tick: 0, 0.25, 1500, 20k, 3M, 1e-6.
pub(super) fn short(value: f64) -> String {
    let magnitude = value.abs();
    if magnitude == 0.0 {
        return "0".into();
    }
    if !(1e-3..1e12).contains(&magnitude) {
        return format!("{value:.0e}");
    }
    let (unit, suffix) = match magnitude {
        m if m >= 1e9 => (1e9, "G"),
        m if m >= 1e6 => (1e6, "M"),
        m if m >= 1e4 => (1e3, "k"),
        _ => (1.0, ""),
    };
    let digits = format!("{:.3}", value / unit);
    let digits = digits.trim_end_matches('0').trim_end_matches('.');
    format!("{digits}{suffix}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scale(axis: &Axis, values: &[f64]) -> Scale {
        axis.scale(values.iter().copied()).expect("a scale")
    }

    #[test]
    fn ticks_are_round_and_hold_all_values() {
        let linear = Axis::linear("");
        assert_eq!(
            scale(&linear, &[3.0, 47.0]).ticks,
            [0.0, 10.0, 20.0, 30.0, 40.0, 50.0]
        );
        assert_eq!(scale(&linear, &[0.0]).ticks.len(), 6);
        assert_eq!(scale(&linear, &[-1.0, 1.0]).place(0.0), 0.5);
        let log = Axis::log("");
        assert_eq!(
            scale(&log, &[1e-9, 0.5]).ticks.len(),
            5,
            "every second decade"
        );
        assert_eq!(scale(&log, &[1024.0, 8192.0]).ticks, [1e3, 2e3, 5e3, 1e4]);
        assert!(scale(&log, &[7.0]).ticks.len() > 1);
        assert!(log.scale([0.0, -1.0, f64::NAN].into_iter()).is_none());
        for values in [
            [1e-300, 1e300],
            [5e-7, 6e-7],
            [1.0, 1.0],
            [131072.0, 1024.0],
        ] {
            for axis in [&linear, &log] {
                let scale = scale(axis, &values);
                for value in values {
                    let place = scale.place(value);
                    assert!((-1e-9..=1.0 + 1e-9).contains(&place), "{values:?}: {place}");
                }
                assert!((2..20).contains(&scale.ticks.len()), "{scale:?}");
            }
        }
    }

    #[test]
    fn ticks_read_well() {
        let texts = [0.0, 0.25, 1500.0, 20e3, 3e6, 1e-6, -2.0].map(short);
        assert_eq!(texts, ["0", "0.25", "1500", "20k", "3M", "1e-6", "-2"]);
    }
}
