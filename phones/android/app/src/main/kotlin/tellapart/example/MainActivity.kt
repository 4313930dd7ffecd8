package tellapart.example

import android.graphics.ImageDecoder
import android.net.Uri
import android.os.Build
import android.os.Bundle
import android.provider.MediaStore
import android.widget.Button
import android.widget.LinearLayout
import android.widget.TextView
import androidx.activity.ComponentActivity
import androidx.activity.result.PickVisualMediaRequest
import androidx.activity.result.contract.ActivityResultContracts.PickVisualMedia
import androidx.activity.result.contract.ActivityResultContracts.PickVisualMedia.ImageOnly
import kotlin.concurrent.thread

/** Chooses a photo and shows what it is. */
class MainActivity : ComponentActivity() {
    private val opened = lazy { Classifier(applicationContext) }
    private lateinit var answer: TextView

    private val choose = registerForActivityResult(PickVisualMedia()) { photo -> photo?.let(::show) }

    override fun onCreate(state: Bundle?) {
        super.onCreate(state)
        answer = TextView(this).apply { textSize = 20f }
        val button = Button(this).apply {
            text = "Choose a photo"
            setOnClickListener { choose.launch(PickVisualMediaRequest(ImageOnly)) }
        }
        setContentView(
            LinearLayout(this).apply {
                orientation = LinearLayout.VERTICAL
                fitsSystemWindows = true
                addView(button)
                addView(answer)
            }
        )
    }

    // Not on the thread of the screen: opening the model takes a moment.
    private fun show(photo: Uri) = thread {
        val text = try {
            opened.value.classify(decoded(photo)).joinToString("\n") { (name, p) -> "%s %.1f %%".format(name, 100 * p) }
        } catch (error: Exception) {
            "This photo cannot be classified: ${error.message}"
        }
        runOnUiThread { answer.text = text }
    }

    /** Upright, and in memory that the classifier can read: bitmaps of the graphics processor cannot be. */
    private fun decoded(photo: Uri) =
        if (Build.VERSION.SDK_INT >= Build.VERSION_CODES.P) {
            ImageDecoder.decodeBitmap(ImageDecoder.createSource(contentResolver, photo)) { decoder, _, _ ->
                decoder.allocator = ImageDecoder.ALLOCATOR_SOFTWARE
            }
        } else {
            @Suppress("DEPRECATION") // older phones do not turn photos upright here
            MediaStore.Images.Media.getBitmap(contentResolver, photo)
        }

    override fun onDestroy() {
        super.onDestroy()
        if (opened.isInitialized()) opened.value.close()
    }
}
