// Runs files in ONNX Runtime for JavaScript, for tools/try_runtimes.py; run_files.py says what goes in and out.
//
//     node run_files.cjs ENVIRONMENT/package.json onnxruntime-node OUTPUT '{}' CASE...

const fs = require('fs')
const path = require('path')
const { createRequire } = require('module')

async function main (environment, name, output, options, ...cases) {
  const ort = createRequire(environment)(name)
  ort.env.logLevel = 'fatal'
  if (ort.env.wasm) ort.env.wasm.numThreads = 1
  for (const given of cases) {
    const folder = path.join(output, given)
    fs.mkdirSync(folder, { recursive: true })
    const row = { case: given }
    try {
      const session = await ort.InferenceSession.create(path.join(given, 'model.onnx'), JSON.parse(options))
      const outputs = await session.run(feedsOf(ort, given))
      const found = session.outputNames.map(name => outputs[name])
      found.forEach((one, number) => fs.writeFileSync(path.join(folder, `${number}.bin`), Float32Array.from(one.data)))
      row.outputs = found.map(one => one.dims)
      await session.release()
    } catch (error) { // whatever a runtime fails with is what is looked for
      row.error = `${error.name}: ${error.message}`
    }
    console.log('\n' + JSON.stringify(row))
  }
}

function feedsOf (ort, given) {
  const entries = JSON.parse(fs.readFileSync(path.join(given, 'inputs.json')))
  const kinds = { float32: Float32Array, uint8: Uint8Array }
  return Object.fromEntries(entries.map(entry => {
    const bytes = fs.readFileSync(path.join(given, entry.file))
    const copy = bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.length)
    return [entry.name, new ort.Tensor(entry.dtype, new kinds[entry.dtype](copy), entry.shape)]
  }))
}

main(...process.argv.slice(2))
