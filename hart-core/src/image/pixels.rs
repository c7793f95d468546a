//! Pixels in the formats of other programs.

use super::Image;
use crate::error::{Error, Result};

/// The bytes of a pixel, 8 bits for each channel, in the order of memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum PixelFormat {
    /// Red, green, blue: the format of [`Image::pixels`].
    Rgb,
    /// Blue, green, red.
    Bgr,
    /// Red, green, blue, alpha. The colours are not multiplied by alpha.
    Rgba,
    /// Blue, green, red, alpha. The colours are not multiplied by alpha.
    Bgra,
    /// Grey: the luma of ITU-R BT.601, as in JPEG.
    Grey,
}

impl PixelFormat {
    /// Returns the number of bytes of a pixel.
    pub fn bytes(self) -> usize {
        match self {
            Self::Grey => 1,
            Self::Rgb | Self::Bgr => 3,
            Self::Rgba | Self::Bgra => 4,
        }
    }

    /// Returns the number of bytes from the start of the first row of an image to the end of its last row. `stride` is the distance in
    /// bytes between the starts of two rows; 0 stands for rows without padding.
    ///
    /// # Errors
    ///
    /// [`Error::Request`] if a side is 0, the stride is shorter than a row, or the size overflows.
    pub fn size(self, width: usize, height: usize, stride: usize) -> Result<usize> {
        self.size_of(width, height, stride).ok_or_else(|| {
            let problem = format!("{width} x {height} with a stride of {stride} bytes: expected {}", self.valid_sizes());
            Error::request("pixels", problem)
        })
    }

    fn size_of(self, width: usize, height: usize, stride: usize) -> Option<usize> {
        let row = width.checked_mul(self.bytes()).filter(|row| *row > 0 && (stride == 0 || stride >= *row))?;
        let stride = if stride == 0 { row } else { stride };
        height.checked_sub(1)?.checked_mul(stride)?.checked_add(row)
    }

    fn valid_sizes(self) -> String {
        format!("at least one pixel, and a stride of 0 or at least {} * width", self.bytes())
    }

    /// Checks the length of a buffer and returns the length of a row and the distance between the starts of two rows.
    fn check(self, width: usize, height: usize, stride: usize, length: usize) -> Result<(usize, usize)> {
        let expected = match self.size_of(width, height, stride) {
            // A length that does not match is usually that of another format. With a stride, the last row may have padding too.
            Some(size) if length == size || length > size && stride != 0 => {
                let row = width * self.bytes();
                return Ok((row, if stride == 0 { row } else { stride }));
            }
            Some(size) if stride == 0 => size.to_string(),
            Some(size) => format!("at least {size}"),
            None => self.valid_sizes(),
        };
        let problem = format!(
            "{length} bytes for {width} x {height} with a stride of {stride} bytes and {} bytes a pixel: expected {expected}",
            self.bytes()
        );
        Err(Error::request("pixels", problem))
    }
}

impl Image {
    /// Creates an image from pixels in any format: rows from the top, each `stride` bytes after the one before; 0 stands for rows
    /// without padding. Transparent pixels are composited over white, like those of [`Self::from_rgba`].
    ///
    /// # Errors
    ///
    /// [`Error::Request`] like [`PixelFormat::size`], or if the length of `pixels` is shorter than that size. Without padding, it must be
    /// exactly that size.
    pub fn from_pixels(format: PixelFormat, width: usize, height: usize, stride: usize, pixels: &[u8]) -> Result<Self> {
        let (row, stride) = format.check(width, height, stride, pixels.len())?;
        let rows = pixels.chunks(stride).take(height).map(|line| &line[..row]);
        match format {
            PixelFormat::Rgb => Self::from_rgb(width, height, rows.flatten().copied().collect()),
            PixelFormat::Bgr => {
                let reversed = rows.flat_map(|row| row.chunks_exact(3).flat_map(|p| [p[2], p[1], p[0]]));
                Self::from_rgb(width, height, reversed.collect())
            }
            PixelFormat::Grey => Self::from_rgb(width, height, rows.flatten().flat_map(|&v| [v; 3]).collect()),
            PixelFormat::Rgba => Self::from_rgba(width, height, &rows.flatten().copied().collect::<Vec<u8>>()),
            PixelFormat::Bgra => {
                let reversed = rows.flat_map(|row| row.chunks_exact(4).flat_map(|p| [p[2], p[1], p[0], p[3]]));
                Self::from_rgba(width, height, &reversed.collect::<Vec<u8>>())
            }
        }
    }

    /// Writes the pixels in any format to a buffer: rows from the top, each `stride` bytes after the one before; 0 stands for rows
    /// without padding. Bytes between the rows are left as they are. Alpha is 255, since transparent pixels have been composited over
    /// white.
    ///
    /// # Errors
    ///
    /// [`Error::Request`] like [`Self::from_pixels`].
    pub fn copy_pixels(&self, format: PixelFormat, stride: usize, buffer: &mut [u8]) -> Result<()> {
        let (row, stride) = format.check(self.width, self.height, stride, buffer.len())?;
        for (out, line) in buffer.chunks_mut(stride).zip(self.pixels.chunks_exact(3 * self.width)) {
            let pixels = line.chunks_exact(3).map(|p| [p[0], p[1], p[2]]);
            for (out, [r, g, b]) in out[..row].chunks_exact_mut(format.bytes()).zip(pixels) {
                match format {
                    PixelFormat::Rgb => out.copy_from_slice(&[r, g, b]),
                    PixelFormat::Bgr => out.copy_from_slice(&[b, g, r]),
                    PixelFormat::Rgba => out.copy_from_slice(&[r, g, b, 255]),
                    PixelFormat::Bgra => out.copy_from_slice(&[b, g, r, 255]),
                    PixelFormat::Grey => out[0] = luma([r, g, b]),
                }
            }
        }
        Ok(())
    }
}

/// Returns the luma of ITU-R BT.601 in fixed point: 0.299, 0.587 and 0.114, which add up to 65536. Grey stays the same.
fn luma([r, g, b]: [u8; 3]) -> u8 {
    ((19595 * u32::from(r) + 38470 * u32::from(g) + 7471 * u32::from(b) + 32768) >> 16) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [PixelFormat; 5] = [PixelFormat::Rgb, PixelFormat::Bgr, PixelFormat::Rgba, PixelFormat::Bgra, PixelFormat::Grey];

    #[test]
    fn every_format_is_read_as_it_is_written() {
        let colours = super::super::tests::checker();
        let grey = Image::from_rgb(4, 3, (0..12).flat_map(|i| [i * 20; 3]).collect()).unwrap();
        for format in ALL {
            let image = if format == PixelFormat::Grey { &grey } else { &colours };
            let row = 4 * format.bytes();
            for stride in [0, row, row + 5] {
                let step = if stride == 0 { row } else { stride };
                for length in [2 * step + row, 3 * step] {
                    let mut buffer = vec![7; length];
                    image.copy_pixels(format, stride, &mut buffer).unwrap();
                    assert_eq!(&Image::from_pixels(format, 4, 3, stride, &buffer).unwrap(), image, "{format:?} {stride}");
                    assert!(buffer.chunks(step).all(|line| line[row.min(line.len())..].iter().all(|&padding| padding == 7)));
                }
            }
        }
    }

    #[test]
    fn channels_have_their_order() {
        let image = Image::from_rgb(1, 1, vec![10, 20, 30]).unwrap();
        let read = |format: PixelFormat| {
            let mut buffer = vec![0; format.bytes()];
            image.copy_pixels(format, 0, &mut buffer).unwrap();
            buffer
        };
        assert_eq!(read(PixelFormat::Bgr), [30, 20, 10]);
        assert_eq!(read(PixelFormat::Rgba), [10, 20, 30, 255]);
        assert_eq!(read(PixelFormat::Bgra), [30, 20, 10, 255]);
        // As Pillow's `convert("L")` has it.
        assert_eq!(read(PixelFormat::Grey), [18]);
        assert_eq!([luma([255, 0, 0]), luma([0, 255, 0]), luma([0, 0, 255]), luma([255; 3]), luma([1; 3])], [76, 150, 29, 255, 1]);
        let hole = Image::from_pixels(PixelFormat::Bgra, 2, 1, 0, &[30, 20, 10, 255, 1, 2, 3, 0]).unwrap();
        assert_eq!(hole.pixels(), [10, 20, 30, 255, 255, 255]);
        assert_eq!(hole.transparency().pixels(), [0, 0, 0, 255, 255, 255]);
    }

    #[test]
    fn sizes_are_checked() {
        let image = Image::from_rgb(2, 2, vec![0; 12]).unwrap();
        let error = |result: Result<Image>| result.unwrap_err().to_string();
        let read = |stride, pixels: &[u8]| Image::from_pixels(PixelFormat::Rgba, 2, 2, stride, pixels);
        assert!(error(read(0, &[0; 12])).contains("12 bytes for 2 x 2 with a stride of 0 bytes and 4 bytes a pixel: expected 16"));
        assert!(error(read(0, &[0; 17])).contains("expected 16"));
        assert!(error(read(9, &[0; 16])).contains("expected at least 17"));
        assert!(error(read(7, &[0; 99])).contains("at least 4 * width"));
        assert!(read(9, &[0; 17]).is_ok() && read(9, &[0; 99]).is_ok());
        assert!(image.copy_pixels(PixelFormat::Grey, 0, &mut [0; 3]).unwrap_err().to_string().contains("expected 4"));
        for (width, height, stride) in [(0, 1, 0), (1, 0, 0), (usize::MAX, 2, 0), (1, usize::MAX, usize::MAX)] {
            let error = error(Image::from_pixels(PixelFormat::Bgr, width, height, stride, &[0; 3]));
            assert!(error.contains("at least one pixel"), "{error}");
        }
    }
}
