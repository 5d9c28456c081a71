//! Max pooling by two. candle's own passes a quarter of the gradient back, and misplaces it where
//! a side is odd.

use candle_core::{
    CpuStorage, CustomOp1, CustomOp2, Layout, Result, Shape, Tensor, WithDType, bail,
};

/// The largest of each 2x2 pixels; an odd last row or column is left out. Its gradient goes to
/// the first of the largest, as PyTorch's does.
pub(super) fn halve(images: &Tensor) -> Result<Tensor> {
    match images.device().is_cpu() {
        true => images.contiguous()?.apply_op1(Halve),
        false => gather(images),
    }
}

/// The same by candle's operations, as a GPU takes it. Of several largest a GPU may choose another
/// than the first.
fn gather(images: &Tensor) -> Result<Tensor> {
    let (n, channels, height, width) = images.dims4()?;
    let (rows, columns) = (height / 2, width / 2);
    let even = images.narrow(2, 0, 2 * rows)?.narrow(3, 0, 2 * columns)?.contiguous()?;
    let windows = even.reshape((n * channels * rows, 2, columns, 2))?.transpose(1, 2)?;
    let windows = windows.reshape((n * channels * rows * columns, 4))?;
    // No gradient runs through the choice.
    let largest = windows.detach().argmax_keepdim(1)?;
    windows.gather(&largest, 1)?.reshape((n, channels, rows, columns))
}

struct Halve;

/// From the images and the gradient of what they were halved to, the gradient of the images.
struct Widen;

impl CustomOp1 for Halve {
    fn name(&self) -> &'static str {
        "halve"
    }

    fn cpu_fwd(&self, images: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (n, channels, height, width) = layout.shape().dims4()?;
        let halved = match images {
            CpuStorage::F32(images) => CpuStorage::F32(maxima(of(images, layout)?, height, width)),
            CpuStorage::F64(images) => CpuStorage::F64(maxima(of(images, layout)?, height, width)),
            _ => bail!("images are halved as f32 or f64"),
        };
        Ok((halved, (n, channels, height / 2, width / 2).into()))
    }

    fn bwd(&self, images: &Tensor, _: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        images.apply_op2_no_bwd(&gradient.contiguous()?, &Widen).map(Some)
    }
}

impl CustomOp2 for Widen {
    fn name(&self) -> &'static str {
        "widen"
    }

    fn cpu_fwd(
        &self,
        images: &CpuStorage,
        layout: &Layout,
        gradient: &CpuStorage,
        gradient_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (_, _, height, width) = layout.shape().dims4()?;
        let widened = match (images, gradient) {
            (CpuStorage::F32(images), CpuStorage::F32(gradient)) => CpuStorage::F32(spread(
                of(images, layout)?,
                of(gradient, gradient_layout)?,
                height,
                width,
            )),
            (CpuStorage::F64(images), CpuStorage::F64(gradient)) => CpuStorage::F64(spread(
                of(images, layout)?,
                of(gradient, gradient_layout)?,
                height,
                width,
            )),
            _ => bail!("images are halved as f32 or f64"),
        };
        Ok((widened, layout.shape().clone()))
    }
}

fn maxima<T: WithDType>(images: &[T], height: usize, width: usize) -> Vec<T> {
    let mut halved = Vec::with_capacity(images.len() / 4);
    for image in images.chunks_exact(height * width) {
        for row in 0..height / 2 {
            for column in 0..width / 2 {
                halved.push(image[largest(image, 2 * row * width + 2 * column, width)]);
            }
        }
    }
    halved
}

fn spread<T: WithDType>(images: &[T], gradient: &[T], height: usize, width: usize) -> Vec<T> {
    let mut widened = vec![T::zero(); images.len()];
    let mut gradient = gradient.iter();
    for (image, widened) in
        images.chunks_exact(height * width).zip(widened.chunks_exact_mut(height * width))
    {
        for row in 0..height / 2 {
            for column in 0..width / 2 {
                if let Some(&gradient) = gradient.next() {
                    widened[largest(image, 2 * row * width + 2 * column, width)] = gradient;
                }
            }
        }
    }
    widened
}

/// The place of the first largest of 2x2 pixels; one that is no number is the largest, so that it
/// is not lost.
fn largest<T: WithDType>(image: &[T], corner: usize, width: usize) -> usize {
    let mut best = corner;
    for place in [corner + 1, corner + width, corner + width + 1] {
        let value = image[place];
        if value > image[best] || value.partial_cmp(&value).is_none() {
            best = place;
        }
    }
    best
}

/// The elements of a contiguous tensor.
fn of<'a, T>(elements: &'a [T], layout: &Layout) -> Result<&'a [T]> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&elements[start..end]),
        None => bail!("images that are not contiguous"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{DType, Device, Var};

    #[test]
    fn candles_operations_do_the_same() {
        let pixels: Vec<f32> = (0..2 * 3 * 5 * 6).map(|at| ((at * 37) % 23) as f32 - 9.0).collect();
        let images = Tensor::from_vec(pixels, (2, 3, 5, 6), &Device::Cpu).unwrap();
        let images = Var::from_tensor(&images).unwrap();
        let [ours, theirs] = [halve(&images).unwrap(), gather(&images).unwrap()].map(|halved| {
            let weights = Tensor::arange(0f32, 36f32, &Device::Cpu).unwrap();
            let weights = weights.reshape((2, 3, 2, 3)).unwrap();
            let sum = (&halved * weights).unwrap().sum_all().unwrap();
            let gradients = sum.backward().unwrap();
            let gradient = gradients.get(&images).unwrap().flatten_all().unwrap();
            let halved = halved.flatten_all().unwrap();
            (halved.to_vec1::<f32>().unwrap(), gradient.to_vec1::<f32>().unwrap())
        });
        assert_eq!(ours, theirs);
    }

    #[test]
    fn the_gradient_goes_to_the_largest() {
        let image = [
            [1.0f32, 2.0, 0.0, 0.0, 9.0],
            [4.0, 3.0, 0.0, 0.0, 9.0],
            [5.0, 5.0, f32::NAN, 1.0, 9.0],
            [5.0, 1.0, 7.0, 8.0, 9.0],
            [9.0, 9.0, 9.0, 9.0, 9.0],
        ];
        let image = Tensor::new(&image, &Device::Cpu).unwrap().reshape((1, 1, 5, 5)).unwrap();
        for dtype in [DType::F32, DType::F64] {
            let image = Var::from_tensor(&image.to_dtype(dtype).unwrap()).unwrap();
            let halved = halve(&image).unwrap();
            assert_eq!(halved.dims(), [1, 1, 2, 2]);
            let values = |tensor: &Tensor| {
                let tensor = tensor.flatten_all().unwrap().to_dtype(DType::F64).unwrap();
                tensor.to_vec1::<f64>().unwrap()
            };
            let found = values(&halved);
            assert_eq!(found[..3], [4.0, 0.0, 5.0]);
            assert!(found[3].is_nan());
            let weights = Tensor::new(&[10.0, 20.0, 30.0, 40.0], &Device::Cpu).unwrap();
            let weights = weights.reshape((1, 1, 2, 2)).unwrap().to_dtype(dtype).unwrap();
            let gradients = (halved * weights).unwrap().sum_all().unwrap().backward().unwrap();
            let mut expected = [0.0; 25];
            for (place, gradient) in [(5, 10.0), (2, 20.0), (10, 30.0), (12, 40.0)] {
                expected[place] = gradient;
            }
            assert_eq!(values(gradients.get(&image).unwrap()), expected);
        }
    }
}
