//! From a verdict to what `--backend auto` asks: the better back end of one model, or of two files the better one.

use super::{
    found::{Found, SideFound},
    side::Side,
    stored::{Best, Other, Stored, Verdicts},
    verdict::Winner,
};
use crate::{backend::Target, checkpoint::Checkpoint, cli::model::Common};
use anyhow::Result;
use std::path::Path;

/// Forgets the verdict for the model, or all of them.
pub fn forget(common: &Common) -> Result<()> {
    let Some(mut verdicts) = Verdicts::open() else {
        return Ok(());
    };
    let known = match &common.model {
        None => verdicts.forget_all()?,
        Some(_) => usize::from(verdicts.forget(&common.open_checkpoint()?)?),
    };
    tell!(
        "forgot {known} verdict{}",
        if known == 1 { "" } else { "s" }
    );
    Ok(())
}

/// One side of a verdict that can be followed.
struct Compared {
    /// As after `--model`, from any folder.
    name: String,
    model: Checkpoint,
    /// As after `--backend`.
    asked: String,
    /// The same, where that was `auto` what it meant.
    backend: String,
}

impl Compared {
    /// `None` where flags say more than a back end and a model: nobody else would set them; and where the back end
    /// is none that `auto` may take.
    fn of(side: &Side, both: &Common, found: &SideFound) -> Result<Option<Compared>> {
        let common = side.common(both);
        let plain = side.program.is_none() && side.threads.is_none() && !common.rope_compat;
        let Some(given) = common.model.as_deref().filter(|_| plain) else {
            return Ok(None);
        };
        let backend = match &*common.backend {
            "auto" => found.backend.split(' ').next().unwrap_or_default(),
            "cuda:0" => "cuda",
            name => name,
        };
        if !can_be_taken(backend) {
            return Ok(None);
        }
        let name = match Path::new(given).exists() {
            true => std::path::absolute(given)?.to_string_lossy().into_owned(),
            false => given.to_owned(),
        };
        Ok(Some(Compared {
            name,
            model: common.open_checkpoint()?,
            backend: backend.to_owned(),
            asked: common.backend,
        }))
    }
}

/// Whether it may become what `auto` takes: the reference is there to judge, and one instruction set of the
/// processor to be looked at.
fn can_be_taken(backend: &str) -> bool {
    ["cpu", "mlx", "cuda"].contains(&backend) || backend.starts_with("cuda:")
}

/// Keeps what `--backend auto` can follow or tell: two back ends on one model, or two models' files. One of the back
/// ends has to be the one that it takes now, or else nothing was found out about that.
pub fn store(both: &Common, sides: [&Side; 2], found: &Found) -> Result<()> {
    let verdict = &found.verdict;
    let Some(winner) = verdict.winner else {
        return Ok(());
    };
    let a = Compared::of(sides[0], both, &found.a)?;
    let b = Compared::of(sides[1], both, &found.b)?;
    let (Some(a), Some(b)) = (a, b) else {
        return Ok(());
    };
    let (best, rest) = match winner {
        Winner::A => (a, b),
        Winner::B => (b, a),
    };
    let Some(mut verdicts) = Verdicts::open() else {
        return Ok(());
    };
    let known = |verdicts: &Verdicts, side: &Compared| {
        let file = side.model.path().file_name().unwrap_or_default();
        Stored {
            model: file.to_string_lossy().into_owned(),
            ..verdicts.get(&side.model).cloned().unwrap_or_default()
        }
    };
    let here = Target::auto_name();
    let is_auto = |stored: &Stored, side: &Compared| {
        let taken = stored.best.as_ref().map_or(here, |best| &best.backend);
        side.backend == taken
    };
    let why = format!("{}, by --prefer {}", verdict.why, verdict.prefer.name());
    let mut of_best = known(&verdicts, &best);
    let mut of_rest = known(&verdicts, &rest);
    let (best_is_auto, rest_is_auto) = (is_auto(&of_best, &best), is_auto(&of_rest, &rest));
    if verdicts.key(&best.model) == verdicts.key(&rest.model) {
        if best.backend == rest.backend {
            return Ok(());
        }
        if !best_is_auto && !rest_is_auto {
            tell!(
                "`--backend auto` takes neither of the two for this model here: it stays as it is"
            );
            return Ok(());
        }
        let backend = best.backend;
        tell!(
            "stored: `--backend auto` takes {backend} for this model on this machine (--forget forgets it)"
        );
        of_best.best = Some(Best { backend, why });
        return verdicts.set(&best.model, of_best);
    }
    if !rest_is_auto {
        tell!(
            "`--backend auto` does not take {} for {} here: it stays as it is",
            rest.backend,
            rest.name
        );
        return Ok(());
    }
    // Of back ends on one file a comparison of these two on that file knows more.
    if !best_is_auto && of_best.best.is_none() {
        of_best.best = Some(Best {
            backend: best.backend,
            why: format!("{why}; compared with {}={}", rest.backend, rest.name),
        });
    }
    of_best.other = of_best.other.filter(|other| other.model != rest.name);
    verdicts.set(&best.model, of_best)?;
    of_rest.other = Some(Other {
        model: best.name,
        backend: best.asked,
        why,
    });
    verdicts.set(&rest.model, of_rest)?;
    tell!(
        "stored: who runs {} without --backend is told so (--forget forgets it)",
        rest.name
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_there_to_judge_is_never_taken() {
        for backend in ["cpu", "mlx", "cuda", "cuda:1"] {
            assert!(can_be_taken(backend), "{backend}");
        }
        for backend in ["reference", "cpu:avx2", "cpu:scalar", "auto", ""] {
            assert!(!can_be_taken(backend), "{backend}");
        }
    }
}
