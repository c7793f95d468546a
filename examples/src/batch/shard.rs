//! The share of the lines that a process generates.

use std::env;
use std::fmt;
use std::str::FromStr;

/// Variable with the number of shards, for Kubernetes, which only tells the index.
const SHARDS: &str = "HART_BATCH_SHARDS";
/// Variable with the index of a pod of an Indexed Job of Kubernetes.
const JOB_INDEX: &str = "JOB_COMPLETION_INDEX";
/// Variables of a task of a Slurm array.
const SLURM_INDEX: &str = "SLURM_ARRAY_TASK_ID";
const SLURM_COUNT: &str = "SLURM_ARRAY_TASK_COUNT";
const SLURM_MIN: &str = "SLURM_ARRAY_TASK_MIN";
const SLURM_STEP: &str = "SLURM_ARRAY_TASK_STEP";

/// One of several shares of the lines. A line belongs to the shard that the hash of its id chooses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shard {
    index: u64,
    count: u64,
}

impl Shard {
    /// All lines.
    pub const ALL: Self = Self { index: 0, count: 1 };

    /// Returns the shard of this process: `shard`, or the index of a cluster's job with `count` shards, or all lines.
    ///
    /// # Errors
    ///
    /// Returns a message if the number of shards or the index is missing or wrong.
    pub fn choose(shard: Option<Self>, count: Option<u64>) -> Result<Self, String> {
        shard.map_or_else(|| Self::from_variables(count, |name| env::var(name).ok().filter(|value| !value.is_empty())), Ok)
    }

    fn from_variables(count: Option<u64>, variable: impl Fn(&str) -> Option<String>) -> Result<Self, String> {
        let number = |name: &str| match variable(name) {
            None => Ok(None),
            Some(text) => match text.parse::<u64>() {
                Ok(number) => Ok(Some((number, name.to_string()))),
                Err(_) => Err(format!("{name}: \"{text}\", expected a whole number")),
            },
        };
        let count = match count {
            Some(count) => Some((count, "--shards".to_string())),
            None => number(SHARDS)?,
        };
        let job = number(JOB_INDEX)?;
        let slurm = number(SLURM_INDEX)?;
        let ((index, index_name), (count, count_name)) = match (job, slurm, count) {
            (None, None, None) => return Ok(Self::ALL),
            (Some(index), _, Some(count)) | (None, Some(index), Some(count)) => (index, count),
            (Some(_), _, None) => {
                return Err(format!("{JOB_INDEX} is set, but not the number of shards: pass --shards or set {SHARDS}"));
            }
            // Arrays need not start at 0.
            (None, Some((index, name)), None) => {
                let count =
                    number(SLURM_COUNT)?.ok_or_else(|| format!("{SLURM_INDEX} is set, but not {SLURM_COUNT}: pass --shards"))?;
                let first = number(SLURM_MIN)?.map_or(0, |(first, _)| first);
                let step = number(SLURM_STEP)?.map_or(1, |(step, _)| step.max(1));
                let offset = index.checked_sub(first).filter(|offset| offset % step == 0);
                let offset =
                    offset.ok_or_else(|| format!("{name} is {index}, which no array from {first} in steps of {step} has"))?;
                ((offset / step, name), count)
            }
            (None, None, Some((count, name))) => {
                return match count {
                    1 => Ok(Self::ALL),
                    _ => {
                        Err(format!("{name} is {count}, but neither {JOB_INDEX} nor {SLURM_INDEX} is set: pass --shard K/{count}"))
                    }
                };
            }
        };
        if index < count {
            return Ok(Self { index, count });
        }
        Err(format!(
            "{index_name} stands for shard {index}, counted from 0, but there are {count} ({count_name}): pass --shards with the number of \
             all shards, whose indices are 0 to that number less 1"
        ))
    }

    /// Returns whether a line with this hash belongs to the shard.
    pub fn contains(self, hash: u64) -> bool {
        hash % self.count == self.index
    }

    /// Returns the shard that a name such as `results-0-of-4.jsonl` ends with.
    pub fn of_name(name: &str, prefix: &str, suffix: &str) -> Option<Self> {
        let (index, count) = name.strip_prefix(prefix)?.strip_suffix(suffix)?.split_once("-of-")?;
        let shard = Self { index: index.parse().ok()?, count: count.parse().ok()? };
        // Other spellings of the same numbers are not this program's.
        (shard.index < shard.count && name == format!("{prefix}{shard}{suffix}")).then_some(shard)
    }

    /// Returns the shard as an argument of `--shard`.
    pub fn argument(self) -> String {
        format!("{}/{}", self.index, self.count)
    }

    /// Returns whether a line may belong to both shards.
    pub fn overlaps(self, other: Self) -> bool {
        self.count != other.count || self.index == other.index
    }
}

impl fmt::Display for Shard {
    /// Writes the shard as in names of files.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-of-{}", self.index, self.count)
    }
}

impl FromStr for Shard {
    type Err = String;

    /// Parses the argument of `--shard`.
    fn from_str(text: &str) -> Result<Self, String> {
        let numbers = text.split_once('/').and_then(|(index, count)| Some((index.parse().ok()?, count.parse().ok()?)));
        match numbers {
            Some((index, count)) if index < count => Ok(Self { index, count }),
            _ => Err("expected K/N with K from 0 to N - 1, such as 0/4 to 3/4 for four shards".into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shard(text: &str) -> Shard {
        text.parse().unwrap()
    }

    fn with(count: Option<u64>, variables: &[(&str, &str)]) -> Result<Shard, String> {
        Shard::from_variables(count, |name| variables.iter().find(|(other, _)| *other == name).map(|(_, value)| value.to_string()))
    }

    #[test]
    fn every_line_belongs_to_one_shard() {
        let shards: Vec<Shard> = (0..5).map(|index| shard(&format!("{index}/5"))).collect();
        assert!((0..1000).all(|hash| shards.iter().filter(|shard| shard.contains(hash)).count() == 1));
        assert!(Shard::ALL.contains(u64::MAX));
        for text in ["5/5", "1", "-1/2", "0/0", "a/b", "1/2/3"] {
            assert!(text.parse::<Shard>().is_err(), "{text}");
        }
    }

    #[test]
    fn clusters_choose_the_shard() {
        assert_eq!(with(None, &[]), Ok(Shard::ALL));
        assert_eq!(with(Some(8), &[(JOB_INDEX, "3")]), Ok(shard("3/8")));
        assert_eq!(with(None, &[(JOB_INDEX, "3"), (SHARDS, "4")]), Ok(shard("3/4")));
        assert_eq!(with(Some(8), &[(JOB_INDEX, "3"), (SHARDS, "4")]), Ok(shard("3/8")));
        assert_eq!(with(None, &[(SLURM_INDEX, "3"), (SLURM_COUNT, "4")]), Ok(shard("3/4")));
        // --array=1-4 and --array=10-16:2
        let array = |index, first, step| [(SLURM_INDEX, index), (SLURM_COUNT, "4"), (SLURM_MIN, first), (SLURM_STEP, step)];
        assert_eq!(with(None, &array("4", "1", "1")), Ok(shard("3/4")));
        assert_eq!(with(None, &array("14", "10", "2")), Ok(shard("2/4")));
        // A single task is submitted again, with the number of all.
        assert_eq!(with(Some(16), &[(SLURM_INDEX, "5"), (SLURM_COUNT, "1"), (SLURM_MIN, "5")]), Ok(shard("5/16")));
    }

    #[test]
    fn missing_and_wrong_variables_are_named() {
        let problem = |count, variables: &[(&str, &str)]| with(count, variables).unwrap_err();
        assert!(problem(None, &[(JOB_INDEX, "3")]).contains(SHARDS));
        assert!(problem(None, &[(JOB_INDEX, "x"), (SHARDS, "4")]).contains("JOB_COMPLETION_INDEX: \"x\""));
        assert!(problem(None, &[(SHARDS, "4")]).contains("--shard K/4"));
        assert!(problem(Some(3), &[(JOB_INDEX, "3")]).contains("there are 3 (--shards)"));
        assert!(problem(None, &[(SLURM_INDEX, "3")]).contains(SLURM_COUNT));
        // --array=3,9: two tasks whose indices are not 0 and 1.
        assert!(problem(None, &[(SLURM_INDEX, "9"), (SLURM_COUNT, "2"), (SLURM_MIN, "3")]).contains("pass --shards"));
        assert!(problem(None, &[(SLURM_INDEX, "2"), (SLURM_COUNT, "2"), (SLURM_MIN, "3")]).contains("no array from 3"));
    }

    #[test]
    fn names_of_files_have_the_shard() {
        assert_eq!(shard("2/16").to_string(), "2-of-16");
        let of_name = |name| Shard::of_name(name, "results-", ".jsonl");
        assert_eq!(of_name("results-2-of-16.jsonl"), Some(shard("2/16")));
        for name in
            ["results-2-of-2.jsonl", "results-02-of-16.jsonl", "results-.jsonl", "errors-0-of-1.jsonl", "results-0-of-1.json"]
        {
            assert_eq!(of_name(name), None, "{name}");
        }
        assert!(shard("0/4").overlaps(shard("0/1")) && !shard("0/4").overlaps(shard("1/4")));
    }
}
