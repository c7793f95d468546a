//! Scenes with captions, generated on demand.

use std::sync::Arc;

use rayon::prelude::*;

use super::colours::{BACKGROUNDS, visible_backgrounds};
use super::content::{Content, Kind, Naming, Position, Relation, SceneObject, caption};
use super::drawings::Drawings;
use super::layout;
use super::options::SceneOptions;
use super::paint::{Pyramid, composite};
use super::random::Random;
use super::splits::Splits;

/// Number of attempts to sample a valid scene of a kind. If all fail, the scene shows a single object.
const MAX_ATTEMPTS: usize = 1000;

/// A training image with its caption.
#[derive(Clone, Debug, PartialEq)]
pub struct Scene {
    /// RGB pixels, `[side, side, 3]`.
    pub pixels: Vec<u8>,
    /// The caption.
    pub caption: String,
    /// Description of the scene.
    pub content: Content,
}

/// Generator of scenes from a pack of drawings. A pack of captioned images gives its images unchanged, in random order.
#[derive(Clone, Debug)]
pub struct Scenes {
    drawings: Arc<Drawings>,
    options: SceneOptions,
    splits: Splits,
    /// Backgrounds that each drawing has enough contrast with.
    visible: Vec<[bool; BACKGROUNDS.len()]>,
    /// Scaled copies of each drawing.
    pyramids: Vec<Pyramid>,
    /// Drawings of each style.
    by_style: Vec<Vec<usize>>,
}

impl Scenes {
    /// Creates a generator.
    ///
    /// # Errors
    ///
    /// Returns an error if an option is out of its range, or there are too few drawings for the kinds in the mix.
    pub fn new(drawings: Arc<Drawings>, options: SceneOptions) -> Result<Self, String> {
        options.check()?;
        let mut by_style = vec![vec![]; drawings.styles.len()];
        for (index, drawing) in drawings.drawings.iter().enumerate() {
            by_style[drawing.style].push(index);
        }
        let pyramids = (0..drawings.len()).into_par_iter().map(|i| Pyramid::new(drawings.image(i), drawings.side)).collect();
        let (splits, visible) = (Splits::new(&drawings), visible_backgrounds(&drawings));
        let scenes = Self { drawings, options, splits, visible, pyramids, by_style };
        if scenes.drawings.is_empty() {
            return Err("the pack is empty, expected at least one drawing".into());
        }
        if !scenes.drawings.drawings.is_empty() {
            if scenes.options.mix.relation > 0.0 && scenes.drawings.concepts.len() < 2 {
                return Err("scenes of two objects need two concepts; set mix.relation to 0".into());
            }
            if scenes.first_single(0).is_none() {
                return Err("no drawing has enough contrast with any background".into());
            }
        }
        Ok(scenes)
    }

    /// Returns scene `index` of the sequence `seed`. With the same drawings, the same arguments give the same scene on every
    /// machine.
    pub fn scene(&self, seed: u64, index: u64) -> Scene {
        let mut random = Random::new(seed, index);
        let content = self.sample_content(&mut random);
        let Self { options: SceneOptions { named, .. }, .. } = self;
        let naming = Naming {
            background: random.chance(named.background),
            style: random.chance(named.style),
            alias: [random.chance(named.alias), random.chance(named.alias)],
        };
        Scene { pixels: self.render(&content), caption: caption(&content, &self.drawings, naming), content }
    }

    /// Renders a scene as RGB pixels, `[side, side, 3]`.
    ///
    /// # Panics
    ///
    /// Panics if the content refers to drawings that the pack doesn't have.
    pub fn render(&self, content: &Content) -> Vec<u8> {
        let side = self.options.side;
        let mut pixels = content.colour.repeat(side * side);
        for &SceneObject { drawing, centre, size } in &content.objects {
            composite(&mut pixels, side, &self.drawings, &self.pyramids[drawing], drawing, centre, size);
        }
        pixels
    }

    /// Returns the pack.
    pub fn drawings(&self) -> &Arc<Drawings> {
        &self.drawings
    }

    /// Returns the options.
    pub fn options(&self) -> &SceneOptions {
        &self.options
    }

    /// Returns the splits that are held out of training.
    pub fn splits(&self) -> &Splits {
        &self.splits
    }

    /// Samples the content of a training scene.
    fn sample_content(&self, random: &mut Random) -> Content {
        if !self.drawings.captions.is_empty() {
            let middle = self.options.side as f32 / 2.0;
            let image = SceneObject { drawing: random.below(self.drawings.len()), centre: (middle, middle), size: 2.0 * middle };
            return Content { background: 0, colour: [255; 3], style: 0, objects: vec![image], kind: Kind::Image };
        }
        let kind = self.sample_kind(random);
        let allowed = |content: &Content| !self.options.hold_out || self.splits.allows_training(content);
        for _ in 0..MAX_ATTEMPTS {
            if let Some(content) = self.sample(kind, random).filter(allowed) {
                return content;
            }
        }
        self.first_single(random.below(self.drawings.len())).expect("`new` found one")
    }

    /// Samples a kind by the shares of the mix.
    pub(super) fn sample_kind(&self, random: &mut Random) -> Kind {
        let mix = &self.options.mix;
        let mut rest = random.unit() * (mix.single + mix.position + mix.relation + mix.count);
        let mut selects = |share: f64| {
            rest -= share;
            rest < 0.0
        };
        if selects(mix.single) {
            Kind::Single
        } else if selects(mix.position) {
            Kind::Position(Position::ALL[random.below(Position::ALL.len())])
        } else if selects(mix.relation) {
            Kind::Relation(Relation::ALL[random.below(Relation::ALL.len())])
        } else if mix.count > 0.0 {
            self.sample_count(random)
        } else {
            // Reached only by rounding of the shares' sum.
            Kind::Single
        }
    }

    /// Samples a number of equal objects.
    pub(super) fn sample_count(&self, random: &mut Random) -> Kind {
        let [least, greatest] = self.options.counts;
        Kind::Count(least + random.below(greatest + 1 - least))
    }

    /// Samples a scene of a kind. Returns `None` if drawings and background can't be combined. All objects have the same style.
    pub(super) fn sample(&self, kind: Kind, random: &mut Random) -> Option<Content> {
        let first = random.below(self.drawings.drawings.len());
        let style = self.drawings.drawings[first].style;
        let chosen = match kind {
            Kind::Relation(_) => {
                let same_style = &self.by_style[style];
                let second = same_style[random.below(same_style.len())];
                let concept = |i: usize| self.drawings.drawings[i].concept;
                (concept(first) != concept(second)).then_some(vec![first, second])?
            }
            Kind::Count(count) => {
                let counted = !self.drawings.concept(first).plural.is_empty();
                counted.then(|| vec![first; count])?
            }
            _ => vec![first],
        };
        let background = random.below(BACKGROUNDS.len());
        if chosen.iter().any(|&drawing| !self.visible[drawing][background]) {
            return None;
        }
        let colour = self.shade(background, random);
        let objects = layout::place_objects(kind, &chosen, &self.options, random);
        Some(Content { background, colour, style, objects, kind })
    }

    /// Samples another scene with the same caption: new positions and sizes of the objects, and another shade of the background.
    pub fn vary(&self, content: &Content, random: &mut Random) -> Content {
        let drawings: Vec<usize> = content.objects.iter().map(|object| object.drawing).collect();
        let colour = self.shade(content.background, random);
        Content { colour, objects: layout::place_objects(content.kind, &drawings, &self.options, random), ..content.clone() }
    }

    /// Returns the colour of a background with a small random change.
    fn shade(&self, background: usize, random: &mut Random) -> [u8; 3] {
        let jitter = i64::from(self.options.colour_jitter);
        BACKGROUNDS[background].1.map(|level| {
            let change = random.below(2 * jitter as usize + 1) as i64 - jitter;
            (i64::from(level) + change).clamp(0, 255) as u8
        })
    }

    /// Returns a scene of the first drawing from `start` on that has a valid background, on the first such background.
    fn first_single(&self, start: usize) -> Option<Content> {
        let count = self.drawings.drawings.len();
        let all = (start..start + count).flat_map(|i| (0..BACKGROUNDS.len()).map(move |background| (i % count, background)));
        let middle = self.options.side as f32 / 2.0;
        let scene = |(drawing, background): (usize, usize)| Content {
            background,
            colour: BACKGROUNDS[background].1,
            style: self.drawings.drawings[drawing].style,
            objects: vec![SceneObject { drawing, centre: (middle, middle), size: 1.5 * middle }],
            kind: Kind::Single,
        };
        let allowed = |content: &Content| !self.options.hold_out || self.splits.allows_training(content);
        all.filter(|&(drawing, background)| self.visible[drawing][background]).map(scene).find(allowed)
    }
}
