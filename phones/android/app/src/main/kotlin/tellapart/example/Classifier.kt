package tellapart.example

import android.content.Context
import android.graphics.Bitmap
import com.google.mediapipe.framework.image.BitmapImageBuilder
import com.google.mediapipe.tasks.core.BaseOptions
import com.google.mediapipe.tasks.vision.imageclassifier.ImageClassifier
import com.google.mediapipe.tasks.vision.imageclassifier.ImageClassifier.ImageClassifierOptions

class Classifier(context: Context) : AutoCloseable {
    private val task = ImageClassifier.createFromOptions(
        context,
        ImageClassifierOptions.builder()
            .setBaseOptions(BaseOptions.builder().setModelAssetPath("model.tflite").build())
            .setMaxResults(3)
            .build()
    )

    /** The likeliest classes of an upright photo with their probabilities. */
    fun classify(photo: Bitmap): List<Pair<String, Float>> {
        val heads = task.classify(BitmapImageBuilder(photo).build()).classificationResult().classifications()
        val head = heads.first { it.headName().orElse("") == "probabilities" }
        return head.categories().map { it.categoryName() to it.score() }
    }

    override fun close() = task.close()
}
